"""Pictures of what is said of images; matplotlib draws them."""
