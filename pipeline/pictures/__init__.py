"""Figures, and how systems look in them."""
