"""What a user sets: sections of settings, their layers, and the points of a sweep."""
