"""The embedded world: drawn scenes with labels and masks, and the small CLIP that knows them."""
