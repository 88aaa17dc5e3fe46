"""How large an image may be; known before anything that reads images is loaded."""

MAX_PIXELS = 64_000_000
"""An image of more pixels than this is refused before any of them is decoded."""

MAX_BYTES = 1 << 28
"""An image file of more bytes is refused."""
