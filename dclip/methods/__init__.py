"""The methods, one a file, on the same parts: what trains, scores and is compared."""
