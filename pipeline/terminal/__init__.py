"""What a user meets at a terminal: command line, messages, progress bars, pages of the manual."""
