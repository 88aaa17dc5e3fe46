"""What is said of places in a square, back on the image that the square was made of.

A square may show all of an image, its middle, or all of it between bars (`dclip.data.preparation`).
Pixels of the image that were not seen are told apart.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from dclip.data.preparation import Box, Preparation


def place_maps(
    maps: Float[np.ndarray, "classes rows columns"],
    preparation: Preparation,
    *,
    seen: tuple[int, int],
    side: int,
    size: tuple[int, int],
) -> Float[np.ndarray, "classes height width"]:
    """Maps of a square, drawn bilinearly over its image; nan where nothing was seen.

    Args:
        maps: Values of each class on a grid that covers the square.
        preparation: That made the square.
        seen: Width and height of the image that it was made of.
        side: Of the square, in pixels.
        size: Width and height wanted: the image's own, or those of a small copy of it.
    """
    width, height = size
    (rows, is_row), (columns, is_column) = _places(preparation, seen, side, size)
    low, high, share = _between(columns, side, maps.shape[2])
    wide = maps[:, :, low] * (1 - share) + maps[:, :, high] * share
    low, high, share = _between(rows, side, maps.shape[1])
    drawn = wide[:, low] * (1 - share)[:, None] + wide[:, high] * share[:, None]
    placed = np.full((len(maps), height, width), np.nan, np.float32)
    placed[np.ix_(np.ones(len(maps), bool), is_row, is_column)] = drawn
    return placed


def place_mask(
    mask: Shaped[np.ndarray, "rows columns"],
    preparation: Preparation,
    *,
    side: int,
    size: tuple[int, int],
) -> Shaped[np.ndarray, "height width"]:
    """The mask of a square as a mask of its image; 0 where nothing was seen.

    Args:
        mask: Covers the square, in any number of pixels.
        preparation: That made the square.
        side: Of the square, in pixels.
        size: Width and height of the image.
    """
    (rows, is_row), (columns, is_column) = _places(preparation, size, side, size)
    placed = np.zeros((size[1], size[0]), mask.dtype)
    down, across = (
        (own * count / side).astype(np.int64).clip(0, count - 1)
        for own, count in zip((rows, columns), mask.shape, strict=True)
    )
    placed[np.ix_(is_row, is_column)] = mask[np.ix_(down, across)]
    return placed


def place_cell(
    place: int,
    grid: tuple[int, int],
    preparation: Preparation,
    *,
    side: int,
    size: tuple[int, int],
) -> Box:
    """The part of an image that a cell of a grid over its square shows; empty in a bar.

    Args:
        place: Number of the cell, counted row by row.
        grid: Rows and columns.
        preparation: That made the square.
        side: Of the square, in pixels.
        size: Width and height of the image.

    Example:
        >>> place_cell(3, (2, 2), Preparation(), side=64, size=(100, 50))
        Box(left=50.0, top=25.0, right=100.0, bottom=50.0)
    """
    of_image, of_square = preparation.shown(*size, side)
    row, column = divmod(place, grid[1])
    edges = []
    for axis, first, count in ((0, column, grid[1]), (1, row, grid[0])):
        start, stop = of_square[axis], of_square[axis + 2]
        scale = (of_image[axis + 2] - of_image[axis]) / (stop - start)
        ends = (side * end / count for end in (first, first + 1))
        edges.append([of_image[axis] + (min(max(e, start), stop) - start) * scale for e in ends])
    (left, right), (top, bottom) = edges
    return Box(left, top, right, bottom)


def _places(
    preparation: Preparation, seen: tuple[int, int], side: int, size: tuple[int, int]
) -> Any:
    """Where in the square the rows and columns of an image lie, and which of them were seen."""
    of_image, of_square = preparation.shown(*seen, side)
    found = []
    for axis in (1, 0):
        pixels, scale = size[axis], seen[axis] / size[axis]
        first, last = of_image[axis], of_image[axis + 2]
        start, stop = of_square[axis], of_square[axis + 2]
        centres = (np.arange(pixels) + 0.5) * scale
        inside: Bool[np.ndarray, " pixels"] = (first <= centres) & (centres < last)
        found.append((start + (centres[inside] - first) * (stop - start) / (last - first), inside))
    return found


def _between(places: Float[np.ndarray, " pixels"], side: int, count: int) -> Any:
    """Between which two cells of a grid some places of a square lie, and how near to the second."""
    centres = (places * count / side - 0.5).clip(0, count - 1)
    low = centres.astype(np.int64)
    return low, (low + 1).clip(max=count - 1), (centres - low).astype(np.float32)
