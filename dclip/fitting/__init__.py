"""How a method is trained: settings of the loop, batches, packs of trainings, the loop."""
