"""Methods that train through CLIP itself, or look inside it, on the pixels of images."""
