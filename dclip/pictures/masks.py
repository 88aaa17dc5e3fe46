"""Pictures of masks and maps: palette PNG, overlays with a legend, comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from dclip.pictures.canvas import heading, more, one_line

# Okabe and Ito's colours, then those that lie farthest (CIELAB) from all before them to normal,
# protan, deutan and tritan eyes
PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8800ff",
    "#663311", "#bbee99", "#4422aa", "#553366", "#00ffdd", "#bb55ff", "#ee0055", "#ccaa55",
    "#771133", "#885577", "#99ff77", "#88cc99",
)  # fmt: skip

_SIDE = 480  # pixels of the long side of an image in a picture
_COLUMNS = 5
_MOST_MAPS = 24
_MOST_LEGEND = 10
_OPACITY = 0.62
_OTHERS = "#d9d9d9"


@dataclass(frozen=True)
class MaskRow:
    """One image of a comparison.

    Attributes:
        image: RGB.
        masks: Position of the class of every pixel, a mask a column; None where nothing is drawn.
        notes: What stands above each mask.
    """

    image: Image.Image
    masks: Sequence[Integer[np.ndarray, "height width"]]
    notes: Sequence[str]


def rgb_of(position: int) -> tuple[int, int, int]:
    """Colour of a class by its position; they repeat after `PALETTE`."""
    red, green, blue = bytes.fromhex(PALETTE[position % len(PALETTE)][1:])
    return red, green, blue


def palette_image(mask: Integer[np.ndarray, "height width"]) -> Image.Image:
    """A mask as palette PNG: values are kept, 0 is shown black, class ``k`` by `rgb_of(k - 1)`."""
    colours = [(0, 0, 0), *(rgb_of(position) for position in range(254)), (255, 255, 255)]
    image = Image.fromarray(mask)
    image.putpalette(bytes(value for colour in colours for value in colour))
    return image


def heat_maps(
    image: Image.Image,
    maps: Float[np.ndarray, "classes height width"],
    titles: Sequence[str],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """The image, and beside it where each class is, all on one scale.

    Args:
        image: RGB.
        maps: Values of each class over the image, in as many pixels as `small_size` says, those to
            be drawn first, first; nan where there are none. At most 24 are drawn.
        titles: What stands above each of them.
        label: What the values are.
        limits: Ends of the scale; None for the smallest and largest value that is drawn.
        title: Of the picture.
    """
    count = min(len(maps), _MOST_MAPS)
    pixels = np.asarray(_small(image))
    columns = min(_COLUMNS, count + 1)
    rows = -(-(count + 1) // columns)
    cell = 2.3
    figure = Figure(
        figsize=(cell * columns + 1.1, (cell * _height(image) + 0.3) * rows + 0.3),
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    axes[0].imshow(pixels)
    axes[0].set_title("image", fontsize=10)
    low, high = limits or (float(np.nanmin(maps[:count])), float(np.nanmax(maps[:count])))
    drawn = None
    for axis, heat, head in zip(axes[1:], maps[:count], titles, strict=False):
        drawn = show_heat(axis, pixels, heat, low, high)
        axis.set_title(head, fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes.tolist(), shrink=0.8, aspect=30, label=label)
    shown = more(count, len(maps), "classes, those of the highest score")
    figure.suptitle(heading(title, shown), fontsize=9)
    return figure


def said_of(
    image: Image.Image,
    mask: Integer[np.ndarray, "height width"] | None,
    names: Sequence[str],
    maps: Float[np.ndarray, "shown rows columns"],
    titles: Sequence[str],
    limits: Sequence[tuple[float, float]],
) -> Figure:
    """One image with all that is said of it: mask, legend, and a map of each class that is shown.

    Args:
        image: RGB.
        mask: 0 for background, ``k`` for ``names[k - 1]``; None for none.
        names: Of the classes.
        maps: Values over the image, in as many pixels as `small_size` says; nan where there are
            none.
        titles: What stands above each.
        limits: Ends of the scale of each.
    """
    pixels = np.asarray(_small(image))
    cells = 1 + (mask is not None) + len(maps)
    columns = min(_COLUMNS, cells)
    rows = -(-cells // columns)
    cell = 2.4
    figure = Figure(
        figsize=(cell * columns + 0.2, (cell * _height(image) + 0.35) * rows + 0.2),
        layout="constrained",
    )
    axes = iter(figure.subplots(rows, columns, squeeze=False).flatten())
    axis = next(axes)
    axis.imshow(pixels)
    axis.set_title("image", fontsize=9)
    axis.axis("off")
    if mask is not None:
        axis = next(axes)
        row = MaskRow(image, [mask], [""])
        shown = _shares(row, 0, None)
        colours = _row_colours(list(shown)[:_MOST_LEGEND], 0)
        axis.imshow(_coloured(pixels, mask, colours, 0, None))
        axis.set_title("mask", fontsize=9)
        axis.axis("off")
        patches = [
            Patch(facecolor=colour, label=f"{one_line(names[value - 1], 14)} {shown[value]:.0%}")
            for value, colour in colours.items()
        ] or [Patch(alpha=0, label="background only")]
        axis.legend(
            handles=patches, loc="lower left", fontsize=6, framealpha=0.8, borderaxespad=0.2,
            handlelength=1.0, handleheight=1.0, labelspacing=0.2,
        )  # fmt: skip
    for heat, head, (low, high) in zip(maps, titles, limits, strict=True):
        axis = next(axes)
        show_heat(axis, pixels, heat, low, high)
        axis.set_title(one_line(head, 26), fontsize=9)
        axis.axis("off")
    for axis in axes:
        axis.axis("off")
    return figure


def show_heat(axis: Axes, pixels: np.ndarray, heat: np.ndarray, low: float, high: float) -> Any:
    """Draw a map over the grey image: the hotter, the less of the image is seen through it.

    Nothing is drawn where the map is nan.
    """
    strength = np.nan_to_num(np.clip((heat - low) / max(high - low, 1e-9), 0, 1))
    axis.imshow(64 + pixels.mean(axis=2) / 2, cmap="gray", vmin=0, vmax=255)
    return axis.imshow(heat, cmap="inferno", alpha=0.85 * strength, vmin=low, vmax=high)


def overlay(
    image: Image.Image, mask: Integer[np.ndarray, "height width"], names: Sequence[str]
) -> Figure:
    """The mask over its image, with a legend of the classes and their share of the pixels.

    Args:
        image: RGB.
        mask: 0 for background, which is not coloured, ``k`` for ``names[k - 1]``.
        names: Of the classes.
    """
    return comparison([MaskRow(image, [mask], [""])], [""], ["background", *names], 0, ignore=None)


def comparison(
    rows: Sequence[MaskRow],
    titles: Sequence[str],
    names: Sequence[str],
    background: int | None,
    *,
    ignore: int | None = 255,
    title: str = "",
) -> Figure:
    """Images in rows, masks of them in columns, and a legend beside each row.

    A class has one colour in all rows as far as there are enough; no two of a row share one.
    Classes beyond the ten of a legend are grey.

    Args:
        rows: The images; of more than fit on a picture, the first.
        titles: Of the columns of masks.
        names: Of the classes, by the values of masks.
        background: Value that is not coloured; None if all are.
        ignore: Value of pixels that are not counted, and not coloured.
        title: Of the picture.
    """
    columns = 1 + len(titles)
    heights: list[float] = []
    for row in rows:
        if heights and 2.4 * (sum(heights) + _height(row.image)) + 0.42 * len(heights) > 32:
            break
        heights.append(_height(row.image))
    figure = Figure(
        figsize=(2.4 * columns + 2.1, 2.4 * sum(heights) + 0.42 * len(heights) + 0.5),
        layout="constrained",
    )
    axes = figure.subplots(
        len(heights),
        columns + 1,
        squeeze=False,
        gridspec_kw={"width_ratios": [*[2.4] * columns, 1.9], "height_ratios": heights},
    )
    for number, (row, line) in enumerate(zip(rows, axes, strict=False)):
        pixels = np.asarray(_small(row.image))
        shown = _shares(row, background, ignore)
        colours = _row_colours(list(shown)[:_MOST_LEGEND], background)
        line[0].imshow(pixels)
        for axis, mask, head, note in zip(line[1:], row.masks, titles, row.notes, strict=False):
            axis.imshow(_coloured(pixels, mask, colours, background, ignore))
            axis.set_title("\n".join(filter(None, [head * (number == 0), note])), fontsize=9)
        line[0].set_title("image" if number == 0 else "", fontsize=9)
        for axis in line:
            axis.axis("off")
        _legend(line[-1], shown, colours, names, with_shares=len(row.masks) == 1)
    left_out = more(len(heights), len(rows), "images")
    figure.suptitle(heading(title, left_out), fontsize=9)
    return figure


def _shares(row: MaskRow, background: int | None, ignore: int | None) -> dict[int, float]:
    """Share of the pixels of each class of a row, at its largest, in the order of the legend.

    Classes of the first mask come first, then the largest.
    """
    shares: dict[int, float] = {}
    for mask in row.masks:
        for value, count in zip(*np.unique(mask, return_counts=True), strict=True):
            if value not in (background, ignore):
                shares[int(value)] = max(shares.get(int(value), 0.0), int(count) / mask.size)
    first = set(np.unique(row.masks[0]).tolist())
    order = sorted(shares, key=lambda value: (value not in first, -shares[value]))
    return {value: shares[value] for value in order}


def _row_colours(values: Sequence[int], background: int | None) -> dict[int, str]:
    """A colour for each class of a legend: its own, or a free one where two would share it."""
    first = 0 if background is None else 1
    colours: dict[int, str] = {}
    for value in values:
        own = PALETTE[(value - first) % len(PALETTE)]
        free = (colour for colour in PALETTE if colour not in colours.values())
        colours[value] = next(free) if own in colours.values() else own
    return colours


def _legend(
    axis: Axes,
    shown: Mapping[int, float],
    colours: Mapping[int, str],
    names: Sequence[str],
    *,
    with_shares: bool,
) -> None:
    """The classes that are coloured, of a single mask with their shares, and how many are not."""
    patches = [
        Patch(
            facecolor=colour,
            label=one_line(names[value] if value < len(names) else f"value {value}", 18)
            + (f"  {shown[value]:.0%}" if with_shares else ""),
        )
        for value, colour in colours.items()
    ]
    if len(shown) > len(colours):
        patches.append(Patch(facecolor=_OTHERS, label=f"and {len(shown) - len(colours)} more"))
    if not patches:
        patches = [Patch(alpha=0, label="background only")]
    axis.legend(
        handles=patches, loc="center left", frameon=False, fontsize=8, borderaxespad=0,
        handlelength=1.1, handleheight=1.1, labelspacing=0.25,
    )  # fmt: skip


def _coloured(
    pixels: np.ndarray,
    mask: np.ndarray,
    colours: Mapping[int, str],
    background: int | None,
    ignore: int | None,
) -> np.ndarray:
    """Colours of classes over the grey image, white lines between them; the rest as it is."""
    height, width = pixels.shape[:2]
    down = (np.arange(height) + 0.5) * mask.shape[0] / height
    across = (np.arange(width) + 0.5) * mask.shape[1] / width
    small = mask[np.ix_(down.astype(int), across.astype(int))]
    paint = np.empty((height, width, 3))
    paint[:] = tuple(bytes.fromhex(_OTHERS[1:]))
    for value, colour in colours.items():
        paint[small == value] = tuple(bytes.fromhex(colour[1:]))
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    blended = (1 - _OPACITY) * grey + _OPACITY * paint
    plain = np.isin(small, [value for value in (background, ignore) if value is not None])
    result = np.where(plain[..., None], 0.5 * grey + 0.5 * pixels, blended)
    edge = np.zeros(small.shape, bool)
    edge[1:] |= small[1:] != small[:-1]
    edge[:, 1:] |= small[:, 1:] != small[:, :-1]
    result[edge] = 255
    coloured: np.ndarray = result.round().astype(np.uint8)
    return coloured


def small_size(image: Image.Image) -> tuple[int, int]:
    """Width and height with a long side of 480 pixels, the aspect kept."""
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return width, height


def _small(image: Image.Image) -> Image.Image:
    return image.resize(small_size(image), Image.Resampling.BILINEAR)


def _height(image: Image.Image) -> float:
    """Height of an image of width 1, within what a page takes."""
    return min(max(image.height / image.width, 0.4), 1.8)
