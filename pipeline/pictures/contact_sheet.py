"""Contact sheets: rows of small images, each with a caption, or grey with a reason."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from dclip.pictures.canvas import MAX_INCHES, heading, more

_SIDE = 240  # pixels of the long side of an image
_CELL = 1.75  # inches
_GREY = "#bdbdbd"
_MARK = "#ff00c8"  # seen on images of any colour


@dataclass(frozen=True)
class Shot:
    """One image of a sheet.

    Attributes:
        image: RGB; or why there is none, in words.
        caption: What stands below it, a few short lines.
        box: Part of the image that is marked, as shares of its width and height: left, top, right,
            bottom. None marks nothing.
    """

    image: Image.Image | str
    caption: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Row:
    """A row of a sheet, which goes on in the next line where it is long.

    Attributes:
        title: What stands above it.
        shots: Its images.
    """

    title: str
    shots: Sequence[Shot]


def shot_of(
    image: Image.Image | str, caption: str, box: tuple[float, float, float, float] | None = None
) -> Shot:
    """An image as a sheet shows it, small; or why there is none, which marks nothing."""
    if isinstance(image, str):
        return Shot(image, caption)
    copy = image.copy()
    copy.thumbnail((_SIDE, _SIDE))
    return Shot(copy, caption, box)


def contact_sheet(rows: Sequence[Row], title: str = "", *, columns: int = 6) -> Figure:
    """Images in rows, each with its caption; those that do not fit on a picture are left out.

    Args:
        rows: Of the sheet, from the top.
        title: Of the picture.
        columns: Images in a line, at most.
    """
    columns = max(4, min(columns, max((len(row.shots) for row in rows), default=0)))
    lines: list[tuple[str, Sequence[Shot]]] = []
    for row in rows:
        parts = [row.shots[at : at + columns] for at in range(0, len(row.shots), columns)] or [()]
        lines += [(row.title if number == 0 else "", part) for number, part in enumerate(parts)]
    deepest = max((shot.caption.count("\n") + 1 for row in rows for shot in row.shots), default=1)
    high = _CELL + 0.17 * deepest + 0.3
    fitting = max(1, int((MAX_INCHES - 0.8) / high))
    shown, total = lines[:fitting], sum(len(part) for _, part in lines)
    figure = Figure(figsize=(_CELL * columns + 0.6, high * len(shown) + 0.8), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for (head, part), line in zip(shown, axes, strict=True):
        for axis in line:
            axis.axis("off")
        if head:
            line[0].set_title(head, fontsize=10, loc="left", pad=8, weight="bold")
        for axis, shot in zip(line, part, strict=False):
            _draw(axis, shot)
    left_out = more(sum(len(part) for _, part in shown), total, "images")
    figure.suptitle(heading(title, left_out), fontsize=10)
    return figure


def _draw(axis: Axes, shot: Shot) -> None:
    """An image with its mark, or a grey box with the reason."""
    if isinstance(shot.image, str):
        axis.set_xlim(0, 1)
        axis.set_ylim(1, 0)
        axis.set_aspect("equal")
        axis.add_patch(Rectangle((0, 0), 1, 1, facecolor=_GREY))
        reason = "\n".join(textwrap.wrap(shot.image, 24)[:9])
        axis.text(0.5, 0.5, reason, fontsize=6, ha="center", va="center")
    else:
        pixels = np.asarray(shot.image)
        axis.imshow(pixels)
        if shot.box is not None:
            height, width = pixels.shape[:2]
            left, top, right, bottom = shot.box
            for colour, line in (("black", 3.2), (_MARK, 1.8)):
                axis.add_patch(
                    Rectangle(
                        (left * width - 0.5, top * height - 0.5),
                        (right - left) * width,
                        (bottom - top) * height,
                        fill=False,
                        edgecolor=colour,
                        linewidth=line,
                    )
                )
    axis.text(0, -0.03, shot.caption, fontsize=7, ha="left", va="top", transform=axis.transAxes)
