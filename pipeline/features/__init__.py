"""Listings and frozen features as the stages see them: what they are and where they lie."""
