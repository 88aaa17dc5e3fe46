"""The embedded data set ``shapes``: cluttered scenes, drawn rather than downloaded.

It stands in for COCO wherever no data can be fetched: sixteen classes told apart by silhouette
alone (colour, texture, size and rotation say nothing of the class), one to six objects an image,
objects in front of one another, distracting scraps all over the background. Every image follows
from (seed, split, index) and from nothing else, so any part of a split can be drawn anywhere, in
any order.

`scene` draws labelled images, `single` images of one object among broken pieces of others,
`photo` the image-caption pairs a small CLIP is pretrained on (`dclip.world.pretraining`);
`write_coco` lays a split out on disk as COCO does. Each image comes with a short caption, of its
largest object, and with a long one, of everything.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.floating]

SPLIT_SIZES: dict[str, int] = {"train": 4000, "test": 1000, "single": 400}
"""Images of each split: two of scenes, one of single objects for the zero-shot check."""

SINGLE_SIZES: dict[str, int] = {"train": 1600, "val": 320, "test": 1600}
"""Images of each split of `single`: as many of every class."""

RESOLUTION = 192
"""Side in pixels for which the object sizes are made."""

VERSION = 1
"""Goes up when the same (seed, split, index) would draw another scene; caches depend on it."""

MIN_VISIBLE_FRACTION = 0.4
"""An object of which others and the border would leave less than this is taken out of the scene."""

MAX_OBJECTS = 6

# The first word of a random stream's key; a new kind of image takes a new number.
_STREAMS = {"train": 0, "test": 1, "single": 2, "photo": 3}
_SINGLE_STREAMS = {"train": 4, "val": 5, "test": 6}


# ---------------------------------------------------------------------------------------------
# The classes: fields over the unit square, positive inside, slope about one at the outline
# ---------------------------------------------------------------------------------------------


def _both(*fields: Field) -> Field:
    """Inside all of them."""
    return functools.reduce(np.minimum, fields)


def _either(*fields: Field) -> Field:
    """Inside at least one of them."""
    return functools.reduce(np.maximum, fields)


def _radius(x: Field, y: Field) -> Field:
    """Distance from the origin."""
    radius: Field = np.hypot(x, y)
    return radius


def _bearing(x: Field, y: Field) -> Field:
    """Angle in radians, turning from the first argument's axis to the second's."""
    bearing: Field = np.arctan2(y, x)
    return bearing


def _modulo(x: Field, period: float) -> Field:
    """Remainder in [0, period)."""
    remainder: Field = np.mod(x, period)
    return remainder


def _circle(x: Field, y: Field) -> Field:
    return 0.9 - _radius(x, y)


def _square(x: Field, y: Field) -> Field:
    return 0.78 - _either(np.abs(x), np.abs(y))


def _triangle(x: Field, y: Field) -> Field:
    return _both(y + 0.6, 0.5 - 0.894 * np.abs(x) - 0.447 * (y - 0.1))


def _star(x: Field, y: Field) -> Field:
    inner, sector = 0.4, 2 * math.pi / 5
    angle = np.abs(_modulo(_bearing(y, x) + sector / 2, sector) - sector / 2)
    radius = _radius(x, y)
    # the edge runs from the tip (1, 0) to the inner corner, half a sector further round
    corner_x, corner_y = inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    length = math.hypot(1 - corner_x, corner_y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    edge: Field = ((1 - along) * corner_y - across * (1 - corner_x)) / length
    return edge


def _cross(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return _either(_both(0.28 - x, 0.95 - y), _both(0.28 - y, 0.95 - x))


def _ring(x: Field, y: Field) -> Field:
    off_centre: Field = np.abs(_radius(x, y) - 0.72)
    return 0.2 - off_centre


def _heart(x: Field, y: Field) -> Field:
    x = np.abs(x)
    lobes = 0.46 - _radius(x - 0.42, y - 0.3)
    flank = 0.641 * (y + 0.92) - 0.767 * x
    lid = 0.857 * (0.47 - y) - 0.515 * x
    return _either(lobes, _both(flank, lid))


def _moon(x: Field, y: Field) -> Field:
    return _both(0.92 - _radius(x, y), _radius(x - 0.45, y) - 0.72)


def _arrow(x: Field, y: Field) -> Field:
    x = np.abs(x)
    shaft = _both(0.2 - x, y + 0.95, 0.3 - y)
    head = _both(y - 0.1, 0.772 * (0.95 - y) - 0.936 * x)
    return _either(shaft, head)


def _flower(x: Field, y: Field) -> Field:
    radius = _radius(x, y)
    petals = 0.7 * (0.69 + 0.25 * np.cos(6 * _bearing(x, y)) - radius)
    return _both(petals, radius - 0.2)


def _spiral(x: Field, y: Field) -> Field:
    pitch = 0.46
    radius = _radius(x, y)
    turn = _modulo(radius - pitch * _bearing(x, y) / (2 * math.pi), pitch)
    return _both(0.13 - np.abs(turn - pitch / 2), 0.95 - radius)


def _fish(x: Field, y: Field) -> Field:
    body = 0.5 * (1 - _radius((x + 0.2) / 0.74, y / 0.48))
    tail = _both(0.7 * (x - 0.25 - np.abs(y)), 0.92 - x)
    return _either(body, tail)


def _ladder(x: Field, y: Field) -> Field:
    x = np.abs(x)
    rails = 0.13 - np.abs(x - 0.45)
    rungs = _both(0.5 - x, 0.1 - np.abs(_modulo(y + 0.25, 0.5) - 0.25))
    return _both(_either(rails, rungs), 0.95 - np.abs(y))


def _hourglass(x: Field, y: Field) -> Field:
    y = np.abs(y)
    return _both(0.8 * (0.08 + 0.75 * y - np.abs(x)), 0.9 - y)


def _crown(x: Field, y: Field) -> Field:
    tooth = 1 - 2 * np.abs(_modulo(x + 0.85, 0.5667) / 0.5667 - 0.5)
    return _both(y + 0.7, 0.85 - np.abs(x), 0.3 * (tooth - 0.15 - y))


def _mushroom(x: Field, y: Field) -> Field:
    cap = _both(0.9 - _radius(x, y), y)
    stem = _both(0.27 - np.abs(x), y + 0.9, 0.05 - y)
    return _either(cap, stem)


_FIELDS: dict[str, Callable[[Field, Field], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
    "flower": _flower,
    "spiral": _spiral,
    "fish": _fish,
    "ladder": _ladder,
    "hourglass": _hourglass,
    "crown": _crown,
    "mushroom": _mushroom,
}

CLASS_NAMES: tuple[str, ...] = tuple(_FIELDS)

# ---------------------------------------------------------------------------------------------
# What varies without saying anything of the class
# ---------------------------------------------------------------------------------------------

_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 136, 28),
    "yellow": (240, 216, 50),
    "green": (44, 160, 60),
    "blue": (40, 90, 215),
    "purple": (130, 50, 170),
    "white": (240, 240, 240),
    "black": (28, 28, 32),
}

_BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (128, 128, 128),
    "brown": (120, 86, 58),
    "beige": (205, 186, 150),
    "olive": (108, 116, 66),
    "pink": (216, 158, 170),
    "teal": (66, 128, 130),
}

_TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")

# A caption names the salient object, now and then with other things worth telling.
_CAPTIONS: tuple[str, ...] = (
    *("a photo of a {name}.",) * 5,
    *("A photo of a {name}",) * 2,
    *("{name}",) * 2,
    "a {name}",
    *("a {colour} {name}",) * 2,
    *("a photo of a {colour} {name}.",) * 2,
    *("a photo of a {texture} {name}.",) * 2,
    "a photo of a {size} {name}.",
    "a photo of a {name} on a {background} background.",
    "a {texture} {colour} {name} on a {background} background",
)
_BARE_CAPTIONS = 10
"""The first so many captions tell the name alone."""

# Sentences of a long caption. All of them about six objects and the ground fit 77 tokens.
_SENTENCES: tuple[str, ...] = (
    "A {size} {texture} {colour} {name} {place}.",
    "{Place} a {size} {texture} {colour} {name}.",
)
_GROUND_SENTENCES: tuple[str, ...] = (
    "The ground is {ground}.",
    "All on {ground} ground.",
)
_PLACES: tuple[tuple[str, str, str], ...] = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the middle", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
_LARGE = 75
"""An object of a longer side in pixels is called large, at `RESOLUTION`."""

# Of `single`: sides of the object in pixels, and numbers of broken pieces, the last left out.
_SINGLE_SIDES = (52, 88)
_PIECES = (4, 9)


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene, as much of it as can be seen.

    Attributes:
        class_index: Index into `CLASS_NAMES`.
        box: Left, top, width and height in pixels, around the visible pixels.
        visible_pixels: Pixels of the image that show this object.
        visible_fraction: The same over the area of the whole object, in [0, 1]. Only a `photo` can
            hold an object that is hidden altogether; its box is all zeros.
        colour: As captions call it.
        texture: The same of its pattern.
        size: ``"small"`` or ``"large"``.
    """

    class_index: int
    box: tuple[int, int, int, int]
    visible_pixels: int
    visible_fraction: float
    colour: str
    texture: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One image with everything known of it.

    Attributes:
        image: RGB image.
        labels: Label vector, 1 for every class that occurs.
        mask: Per pixel 0 for background, k + 1 for class k.
        instances: Per pixel 0 for background, i + 1 for ``objects[i]``.
        objects: From the furthest to the nearest; all of them are labelled.
        salient: Index into ``objects`` of the one with the most visible pixels.
        caption: What a caption writer would say: the salient object.
        sentences: What a careful one would: a sentence for each object, the largest first, of its
            size, texture, colour, class and place; then one of the ground. Joined by spaces they
            are the long caption.
    """

    image: UInt8[np.ndarray, "height width 3"]
    labels: UInt8[np.ndarray, " classes"]
    mask: UInt8[np.ndarray, "height width"]
    instances: UInt8[np.ndarray, "height width"]
    objects: tuple[SceneObject, ...]
    salient: int
    caption: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class _Placed:
    """An object before drawing: class, centre and side in pixels, rotation in radians."""

    class_index: int
    centre: tuple[float, float]
    side: float
    angle: float


@dataclass(frozen=True)
class _Stamp:
    """An object's opacity on its window of the canvas, and its own coordinates there."""

    window: tuple[slice, slice]
    alpha: Float32[np.ndarray, "rows columns"]
    covers: Bool[np.ndarray, "rows columns"]
    x: Float32[np.ndarray, "rows columns"]
    y: Float32[np.ndarray, "rows columns"]
    whole_pixels: float


def _random(seed: int, stream: int, index: int) -> np.random.Generator:
    """The random stream of one image; counter-based, so neighbours are unrelated."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, index))))


# ---------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------


def _stamp(placed: _Placed, resolution: int) -> _Stamp | None:
    """The object's opacity on its window of the canvas; None if the window is empty."""
    half = placed.side / 2
    reach = 1.42 * half
    centre_x, centre_y = placed.centre
    left, right = max(0, int(centre_x - reach)), min(resolution, int(centre_x + reach) + 1)
    top, bottom = max(0, int(centre_y - reach)), min(resolution, int(centre_y + reach) + 1)
    if left >= right or top >= bottom:
        return None
    columns = (np.arange(left, right, dtype=np.float32) + 0.5 - centre_x) / half
    rows = (centre_y - np.arange(top, bottom, dtype=np.float32) - 0.5) / half
    cosine, sine = math.cos(placed.angle), math.sin(placed.angle)
    x = columns[None, :] * cosine + rows[:, None] * sine
    y = rows[:, None] * cosine - columns[None, :] * sine
    field = _FIELDS[CLASS_NAMES[placed.class_index]](x, y)
    alpha = np.clip(field * half + 0.5, 0, 1)  # the outline blurred over one pixel
    covers = alpha >= 0.5
    whole = _UNIT_AREAS[placed.class_index] * half * half
    return _Stamp((slice(top, bottom), slice(left, right)), alpha, covers, x, y, whole)


def _unit_areas() -> tuple[float, ...]:
    """Area of every class at half-side one, by counting."""
    axis = np.linspace(-1.42, 1.42, 285, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    cell = float(axis[1] - axis[0]) ** 2
    return tuple(float((field(x, y) > 0).sum()) * cell for field in _FIELDS.values())


_UNIT_AREAS = _unit_areas()


def _visible(stamps: Sequence[_Stamp], resolution: int) -> UInt8[np.ndarray, "height width"]:
    """Per pixel i + 1 for the nearest stamp i, 0 for none."""
    instances = np.zeros((resolution, resolution), np.uint8)
    for number, stamp in enumerate(stamps, start=1):
        instances[stamp.window][stamp.covers] = number
    return instances


def _pattern(texture: str, x: Field, y: Field, frequency: float) -> NDArray[np.bool_]:
    """Where the second tone of a texture shows."""
    shows: NDArray[np.bool_] = np.zeros(x.shape, np.bool_)
    if texture == "striped":
        shows = np.sin(frequency * x) > 0
    elif texture == "dotted":
        shows = np.sin(frequency * x) * np.sin(frequency * y) > 0.4
    elif texture == "checkered":
        shows = np.sin(0.8 * frequency * x) * np.sin(0.8 * frequency * y) > 0
    return shows


def _background(
    rng: np.random.Generator, resolution: int, colour: NDArray[np.float32]
) -> tuple[Float32[np.ndarray, "3 height width"], str]:
    """A patterned ground in one muted colour, strewn with scraps of every colour; its texture."""
    axis = np.arange(resolution, dtype=np.float32)
    angle = rng.uniform(0, math.pi)
    x = axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)
    y = axis[:, None] * math.cos(angle) - axis[None, :] * math.sin(angle)
    texture = _TEXTURES[rng.integers(len(_TEXTURES))]
    depth, slope = np.float32(rng.uniform(10, 26)), np.float32(rng.uniform(-20, 20) / resolution)
    shade = depth * _pattern(texture, x, y, 2 * math.pi / rng.uniform(10, 40)) + slope * x
    canvas = colour[:, None, None] + shade

    palette = np.array([*_COLOURS.values(), *_BACKGROUNDS.values()], np.float32)
    for _ in range(rng.integers(resolution // 16, resolution // 6)):
        centre_x, centre_y = rng.uniform(0, resolution, 2)
        long, wide, turn = rng.uniform(4, 12), rng.uniform(1.5, 3.5), rng.uniform(0, math.pi)
        top, left = max(0, int(centre_y - long)), max(0, int(centre_x - long))
        window = canvas[:, top : int(centre_y + long) + 1, left : int(centre_x + long) + 1]
        columns = np.arange(left, left + window.shape[2], dtype=np.float32) - centre_x
        rows = np.arange(top, top + window.shape[1], dtype=np.float32)[:, None] - centre_y
        along = columns * math.cos(turn) + rows * math.sin(turn)
        across = rows * math.cos(turn) - columns * math.sin(turn)
        scrap = (np.abs(along) < long) & (np.abs(across) < wide)
        window[:, scrap] = palette[rng.integers(len(palette))][:, None]
    return canvas, texture


def _draw(
    rng: np.random.Generator,
    resolution: int,
    layout: Sequence[_Placed],
    *,
    min_visible_fraction: float,
    attributes: bool = True,
    large: float = _LARGE,
    pieces: int = 0,
) -> Scene:
    """Draw a layout, furthest object first, and describe what is visible of it.

    Args:
        rng: Of this image.
        resolution: Side of the canvas.
        layout: The objects, the furthest first.
        min_visible_fraction: Objects of which less would be seen are taken out.
        attributes: Whether the caption may tell more than the name.
        large: Side in pixels above which an object is called so.
        pieces: Broken objects behind all others; they are part of the ground.
    """
    pairs = [(placed, stamp) for placed in layout if (stamp := _stamp(placed, resolution))]
    while True:  # taking one object out can only help the others
        instances = _visible([stamp for _, stamp in pairs], resolution)
        pixels = np.bincount(instances.ravel(), minlength=len(pairs) + 1)[1:]
        fractions = [
            min(1.0, float(count) / stamp.whole_pixels)
            for count, (_, stamp) in zip(pixels, pairs, strict=True)
        ]
        hidden = min(range(len(pairs)), key=fractions.__getitem__)
        if fractions[hidden] >= min_visible_fraction or len(pairs) == 1:
            break
        del pairs[hidden]

    background = list(_BACKGROUNDS)[rng.integers(len(_BACKGROUNDS))]
    ground = (np.array(_BACKGROUNDS[background]) + rng.uniform(-12, 12, 3)).astype(np.float32)
    canvas, ground_texture = _background(rng, resolution, ground)
    for _ in range(pieces):
        if (piece := _piece(rng, resolution)) is not None:
            _paint(rng, canvas, piece, ground)
    told: list[dict[str, str]] = []
    for placed, stamp in pairs:
        colour, texture = _paint(rng, canvas, stamp, ground)
        size = "large" if placed.side > large else "small"
        told.append({"colour": colour, "texture": texture, "size": size})
    canvas += rng.integers(-9, 10, canvas.shape, dtype=np.int8)
    image = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)

    salient = int(np.argmax(pixels))
    names = [CLASS_NAMES[placed.class_index] for placed, _ in pairs]
    classes = np.array([0, *(placed.class_index + 1 for placed, _ in pairs)], np.uint8)
    labels = np.zeros(len(CLASS_NAMES), np.uint8)
    labels[classes[1:][pixels > 0] - 1] = 1
    template = _CAPTIONS[rng.integers(len(_CAPTIONS) if attributes else _BARE_CAPTIONS)]
    objects = tuple(
        SceneObject(placed.class_index, _box(instances, number), int(count), fraction, **words)
        for number, ((placed, _), count, fraction, words) in enumerate(
            zip(pairs, pixels, fractions, told, strict=True), start=1
        )
    )
    caption = template.format(name=names[salient], background=background, **told[salient])
    return Scene(
        image=np.ascontiguousarray(image.transpose(1, 2, 0)),
        labels=labels,
        mask=classes[instances],
        instances=instances,
        objects=objects,
        salient=salient,
        caption=caption,
        sentences=_sentences(rng, resolution, objects, f"{ground_texture} {background}"),
    )


def _sentences(
    rng: np.random.Generator, resolution: int, objects: Sequence[SceneObject], ground: str
) -> tuple[str, ...]:
    """One sentence for each object that can be seen, the largest first, and one of the ground."""
    said = []
    for item in sorted(objects, key=lambda each: -each.visible_pixels):
        if not item.visible_pixels:
            continue
        left, top, width, height = item.box
        row, column = (
            min(int(3 * (start + length / 2) / resolution), 2)
            for start, length in ((top, height), (left, width))
        )
        place = _PLACES[row][column]
        template = _SENTENCES[rng.integers(len(_SENTENCES))]
        said.append(
            template.format(
                size=item.size,
                texture=item.texture,
                colour=item.colour,
                name=CLASS_NAMES[item.class_index],
                place=place,
                Place=place.capitalize(),
            )
        )
    said.append(_GROUND_SENTENCES[rng.integers(len(_GROUND_SENTENCES))].format(ground=ground))
    return tuple(said)


def _piece(rng: np.random.Generator, resolution: int) -> _Stamp | None:
    """Half of an object of any class, anywhere, broken along a line; None if it is outside."""
    unit = resolution / RESOLUTION
    centre_x, centre_y = (float(value) for value in rng.uniform(0, resolution, 2))
    side, angle = float(rng.uniform(40, 80)) * unit, float(rng.uniform(0, 2 * math.pi))
    class_index = int(rng.integers(len(CLASS_NAMES)))
    turn, keep = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(-0.15, 0.15))
    stamp = _stamp(_Placed(class_index, (centre_x, centre_y), side, angle), resolution)
    if stamp is None:
        return None
    inside = np.clip((stamp.x * math.cos(turn) + stamp.y * math.sin(turn) - keep) * side, 0, 1)
    return replace(stamp, alpha=(stamp.alpha * inside).astype(np.float32))


def _paint(
    rng: np.random.Generator,
    canvas: Float32[np.ndarray, "3 height width"],
    stamp: _Stamp,
    ground: Float32[np.ndarray, " 3"],
) -> tuple[str, str]:
    """Lay one object over the canvas; return the words for its colour and its texture."""
    while True:  # a colour that stands out against the ground
        colour = list(_COLOURS)[rng.integers(len(_COLOURS))]
        tone = (np.array(_COLOURS[colour]) + rng.uniform(-14, 14, 3)).astype(np.float32)
        if np.abs(tone - ground).sum() > 150:
            break
    texture = _TEXTURES[rng.integers(len(_TEXTURES))]
    frequency = 2 * math.pi / rng.uniform(0.35, 0.6)
    second = 0.62 * tone + (0.38 * 255 if tone.sum() < 280 else 0.0)
    pattern = _pattern(texture, stamp.x, stamp.y, frequency)
    light = np.float32(rng.uniform(-22, 22)) * stamp.y
    rows, columns = stamp.window
    for channel in range(3):
        paint = np.where(pattern, np.float32(second[channel]), np.float32(tone[channel]))
        paint += light
        window = canvas[channel, rows, columns]
        paint -= window
        paint *= stamp.alpha
        window += paint
    return colour, texture


def _box(instances: UInt8[np.ndarray, "height width"], number: int) -> tuple[int, int, int, int]:
    """Left, top, width, height of one instance's visible pixels; zeros if there are none."""
    rows = np.flatnonzero((instances == number).any(axis=1))
    columns = np.flatnonzero((instances == number).any(axis=0))
    if not rows.size:
        return (0, 0, 0, 0)
    left, top = int(columns[0]), int(rows[0])
    return (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)


def _place(
    rng: np.random.Generator,
    resolution: int,
    sides: Sequence[float],
    margins: Sequence[float],
) -> list[_Placed]:
    """Put objects of these sides on the canvas, loosely apart, then shuffle who is in front.

    A centre keeps ``margin`` sides away from the border; below one half the border may cut.
    """
    placed: list[_Placed] = []
    for side, margin in zip(sides, margins, strict=True):
        low, high = margin * side, resolution - margin * side
        best, best_gap = (resolution / 2, resolution / 2), -1.0
        enough = rng.uniform(0.6, 0.95)  # 1 would be side by side
        for _ in range(12):
            x, y = (float(value) for value in rng.uniform(low, high, 2))
            gap = min(
                (
                    math.hypot(x - other.centre[0], y - other.centre[1]) * 2 / (side + other.side)
                    for other in placed
                ),
                default=math.inf,
            )
            if gap > best_gap:
                best, best_gap = (x, y), gap
            if best_gap >= enough:
                break
        angle = math.radians(float(rng.uniform(-30, 30)))
        class_index = int(rng.integers(len(CLASS_NAMES)))
        placed.append(_Placed(class_index, best, side, angle))
    return [placed[position] for position in rng.permutation(len(placed))]


# ---------------------------------------------------------------------------------------------
# The public sources
# ---------------------------------------------------------------------------------------------


def scene(split: str, index: int, *, seed: int = 0, resolution: int = RESOLUTION) -> Scene:
    """One labelled image of a split.

    Args:
        split: ``"train"`` or ``"test"``: one to six objects; ``"single"``: one object.
        index: Position in the split, below ``SPLIT_SIZES[split]``. Class ``index % 16`` in
            ``"single"``, so that every class has the same number of images there.
        seed: Of the world; another seed is another data set of the same kind.
        resolution: Side of the square image in pixels, at least 64; objects grow with it.

    Returns:
        The scene. Every object in it is labelled and at least `MIN_VISIBLE_FRACTION` visible.

    Raises:
        ValueError: If the split is unknown, the index out of range, or the resolution too small.

    Example:
        >>> first = scene("test", 0)
        >>> first.image.shape, sorted({item.class_index for item in first.objects}) == sorted(
        ...     np.flatnonzero(first.labels).tolist()
        ... )
        ((192, 192, 3), True)
    """
    _check(SPLIT_SIZES, "shapes", split, index, resolution)
    rng = _random(seed, _STREAMS[split], index)
    unit = resolution / RESOLUTION
    if split == "single":
        (placed,) = _place(rng, resolution, [float(rng.uniform(64, 96)) * unit], [0.5])
        placed = replace(placed, class_index=index % len(CLASS_NAMES))
        return _draw(rng, resolution, [placed], min_visible_fraction=0.0, large=_LARGE * unit)
    count = int(rng.choice(np.arange(1, MAX_OBJECTS + 1), p=(0.08, 0.17, 0.25, 0.25, 0.15, 0.1)))
    sides = [float(side) * unit for side in rng.uniform(56, 90, count)]
    layout = _place(rng, resolution, sides, [0.42] * count)
    return _draw(
        rng,
        resolution,
        layout,
        min_visible_fraction=MIN_VISIBLE_FRACTION,
        large=_LARGE * unit,
    )


def single(split: str, index: int, *, seed: int = 0, resolution: int = RESOLUTION) -> Scene:
    """One image of one object, whole, on a ground that is strewn with halves of other objects.

    For learning from few images: the label is the object's class, the mask shows the object alone,
    and what lies behind it looks like classes that are not there.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        index: Position in the split, below ``SINGLE_SIZES[split]``. The class is ``index % 16``.
        seed: Of the world.
        resolution: Side of the square image in pixels, at least 64; objects grow with it.

    Raises:
        ValueError: If the split is unknown, the index out of range, or the resolution too small.

    Example:
        >>> drawn = single("val", 3)
        >>> CLASS_NAMES[drawn.objects[0].class_index], np.unique(drawn.mask).tolist()
        ('star', [0, 4])
    """
    _check(SINGLE_SIZES, "shapes-single", split, index, resolution)
    rng = _random(seed, _SINGLE_STREAMS[split], index)
    unit = resolution / RESOLUTION
    (placed,) = _place(rng, resolution, [float(rng.uniform(*_SINGLE_SIDES)) * unit], [0.5])
    placed = replace(placed, class_index=index % len(CLASS_NAMES))
    return _draw(
        rng,
        resolution,
        [placed],
        min_visible_fraction=0.0,
        large=_LARGE * unit,
        pieces=int(rng.integers(*_PIECES)),
    )


def _check(sizes: dict[str, int], name: str, split: str, index: int, resolution: int) -> None:
    """Refuse an image that is in no split, or too small."""
    if split not in sizes:
        known = ", ".join(map(repr, sizes))
        raise ValueError(f"unknown split {split!r}; {name} has {known}")
    if not 0 <= index < sizes[split]:
        raise ValueError(f"index {index} is outside split {split!r}; use 0 to {sizes[split] - 1}")
    if resolution < 64:
        raise ValueError(f"resolution {resolution} leaves nothing to see; use 64 or more")


def photo(
    index: int,
    *,
    seed: int = 0,
    resolution: int = RESOLUTION,
    neighbours: tuple[int, int] = (0, 3),
    attributes: bool = True,
) -> Scene:
    """One image of the pretraining pairs: a salient object framed as a photographer would.

    Objects keep their size in pixels whatever the resolution: a small canvas is a close-up of a
    scene, in which the border cuts the neighbours. The caption names the salient object and is
    silent on the others, which is the bias CLIP takes from the web.

    The images come from a stream of their own, apart from every split of `scene`.

    Args:
        index: Which pair, 0 or more; there is no last one.
        seed: Of the world.
        resolution: Side of the square canvas in pixels, at least 96.
        neighbours: Fewest and most further objects, both included.
        attributes: Whether every other caption tells colour, texture, size or ground as well.

    Returns:
        The scene; ``caption`` names ``objects[salient]``.

    Raises:
        ValueError: If the index is negative, the resolution too small, or the range is empty.
    """
    if index < 0:
        raise ValueError(f"index {index} is negative; use 0 or more")
    if not 0 <= neighbours[0] <= neighbours[1]:
        raise ValueError(f"neighbours={neighbours} is no range; use (fewest, most)")
    if resolution < 96:
        raise ValueError(f"resolution {resolution} does not hold an object; use 96 or more")
    rng = _random(seed, _STREAMS["photo"], index)
    count = int(rng.integers(neighbours[0], neighbours[1] + 1))
    sides = [float(rng.uniform(66, 92)), *(float(side) for side in rng.uniform(54, 74, count))]
    layout = _place(rng, resolution, sides, [0.46] + [-0.1] * count)
    return _draw(rng, resolution, layout, min_visible_fraction=0.0, attributes=attributes)


def write_coco(
    root: Path,
    split: str,
    *,
    count: int | None = None,
    seed: int = 0,
    resolution: int = RESOLUTION,
) -> Path:
    """Lay a split out on disk as COCO 2017 does, for whatever reads COCO.

    ``<root>/<split>/000000000001.jpg`` and so on hold the images (JPEG, quality 95),
    ``<root>/annotations/instances_<split>.json`` the objects with boxes and run-length masks.
    Image ids are index + 1, category ids class index + 1.

    Args:
        root: Folder to write into; made if missing, files of the same name replaced.
        split: A split of `scene`.
        count: Number of images from the first on; all if None.
        seed: Of the world.
        resolution: Side of the images in pixels.

    Returns:
        The annotation file.

    Raises:
        ValueError: If the split is unknown or ``count`` exceeds it.
    """
    if split not in SPLIT_SIZES:
        known = ", ".join(map(repr, SPLIT_SIZES))
        raise ValueError(f"unknown split {split!r}; shapes has {known}")
    total = SPLIT_SIZES[split] if count is None else count
    if not 0 < total <= SPLIT_SIZES[split]:
        raise ValueError(f"count {count} is outside split {split!r}; use 1 to {SPLIT_SIZES[split]}")
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(total):
        drawn = scene(split, index, seed=seed, resolution=resolution)
        name = f"{index + 1:012d}.jpg"
        Image.fromarray(drawn.image).save(folder / name, quality=95)
        images.append(
            {"id": index + 1, "file_name": name, "width": resolution, "height": resolution}
        )
        before = len(annotations)
        annotations += [
            {
                "id": before + number,
                "image_id": index + 1,
                "category_id": item.class_index + 1,
                "bbox": list(item.box),
                "area": item.visible_pixels,
                "iscrowd": 0,
                "segmentation": _run_lengths(drawn.instances == number),
            }
            for number, item in enumerate(drawn.objects, start=1)
        ]
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in enumerate(CLASS_NAMES, start=1)
    ]
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    info = {"description": "shapes: procedural scenes", "split": split, "seed": seed}
    document = {
        "info": info,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    path.write_text(json.dumps(document))
    return path


def _run_lengths(mask: Bool[np.ndarray, "height width"]) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: down the columns, starting with the zeros."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    counts = [0, *runs] if flat[0] else runs
    return {"size": list(mask.shape), "counts": counts}
