"""Prompt templates: what is said of a class, which is put in place of ``{}``."""

POSITIVE_TEMPLATE = "A photo of a {}"
"""Says that a class is present; without a final period, as DCLIP was trained."""

NEGATIVE_TEMPLATE = "Not a photo of a {}"
"""Says that a class is absent."""

ZERO_SHOT_TEMPLATE = "a photo of a {}."
"""CLIP's own template, for class features without a pair."""
