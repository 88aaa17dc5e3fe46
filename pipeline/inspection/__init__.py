"""What data sets there are, whether a copy of one is whole, and what is in it."""
