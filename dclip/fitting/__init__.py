"""How a method is trained: settings of the loop, batches, trials that train together, the loop."""
