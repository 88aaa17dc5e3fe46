"""How an image is cut for segmentation: one square of all of it, or windows that slide over it.

A mask needs all of the image, as large as can be: so nothing is cut off here and no bars are added,
whatever a backbone does elsewhere (`dclip.data.preparation`). Its interpolation is kept.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dclip.data.preparation import Interpolation, Preparation


class Window(NamedTuple):
    """What one forward pass sees, in pixels of the canvas.

    Attributes:
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
    """

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """An image as it goes through the backbone.

    Attributes:
        pixels: RGB of each window, all of one size.
        windows: Where they lie; together they cover the canvas.
        canvas: Height and width of the image the windows are cut from.
        size: Height and width of the original image.
        whole: RGB of the image at about that size, for methods that look at all of it at once.
    """

    pixels: UInt8[np.ndarray, "windows height width 3"]
    windows: tuple[Window, ...]
    canvas: tuple[int, int]
    size: tuple[int, int]
    whole: UInt8[np.ndarray, "1 rows columns 3"] | None = None


def whole_view(
    image: Image.Image, resolution: int, interpolation: Interpolation = "bilinear"
) -> View:
    """The whole image as one square, the aspect not kept: the way of the DCLIP paper.

    Args:
        image: RGB.
        resolution: Side of the square in pixels.
        interpolation: Of the resize.

    Returns:
        One window, that covers a canvas of the original size.
    """
    size = (image.height, image.width)
    pixels = np.asarray(Preparation("squash", interpolation)(image, resolution))[None]
    return View(pixels, (Window(0, 0, *size),), size, size)


def sliding_view(
    image: Image.Image,
    *,
    short_side: int,
    window: int,
    stride: int,
    interpolation: Interpolation = "bilinear",
) -> View:
    """Square windows that slide over the image: the way of SCLIP and its successors.

    The image is resized (antialiased) so that its short side has ``short_side`` pixels,
    the aspect kept to the pixel. Windows start every ``stride`` pixels; the last of a row or column
    is moved back to end at the border.

    Args:
        image: RGB.
        short_side: Of the resized image, in pixels; at least ``window``.
        window: Side of a window in pixels.
        stride: Pixels from one window to the next, 1 to ``window``.
        interpolation: Of the resize.

    Raises:
        ValueError: If the numbers do not fit one another.

    Example:
        >>> view = sliding_view(Image.new("RGB", (40, 20)), short_side=10, window=10, stride=6)
        >>> view.canvas, [window.left for window in view.windows]
        ((10, 20), [0, 6, 10])
    """
    if not 1 <= stride <= window <= short_side:
        raise ValueError(
            f"sliding windows need 1 <= stride <= window <= short side, got stride {stride}, window"
            f" {window}, short side {short_side}"
        )
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    filtered = Preparation("squash", interpolation).filter
    resized = np.asarray(image.resize((width, height), filtered))
    windows = tuple(
        Window(top, left, window, window)
        for top in _starts(height, window, stride)
        for left in _starts(width, window, stride)
    )
    cuts = [resized[cut.top : cut.top + window, cut.left : cut.left + window] for cut in windows]
    return View(np.stack(cuts), windows, (height, width), (image.height, image.width))


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side; the last one ends at the border."""
    return [*range(0, side - window, stride), side - window]
