"""Trained methods as files: where they come from (`origin`), and their tensors (`files`)."""
