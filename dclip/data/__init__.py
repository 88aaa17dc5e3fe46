"""Annotations to samples: listings of data sets, image files to tensors, the embedded world."""
