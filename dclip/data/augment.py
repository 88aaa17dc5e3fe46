"""Pixel augmentation of the published recipe: a box painted over, then two random operations.

The authors train on DualCoOp's preparation: resize to a square, Cutout, RandAugment, tensor,
normalise. Their RandAugment is the package ``randaugment`` 1.0.2, which differs from the paper of
that name (arXiv:1909.13719) and from torchvision's: magnitudes are drawn, operations are left out
half of the time, and Invert and Cutout are among them.

References:
    Cutout: github.com/sunxm2357/DualCoOp, ``dataloaders/helper.py``. Operations, magnitudes and
    fills: ``randaugment/randaugment.py`` of the package, github.com/jizongFox/pytorch-randaugment.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

VERSION = 1
"""Goes up when the same (image, seed) would give other pixels; caches depend on it."""

CUTOUT_FRACTION = 0.5
"""Sides of the box that is painted over first, as a share of the image's."""

LEVELS = 9
"""Operations have magnitudes 1 to this."""

PROBABILITY = 0.5
"""Probability with which each of the two operations is applied."""

# Magnitude of an operation at level 0 (which is never drawn) and at level 9; linear in between.
_MAGNITUDES: dict[str, tuple[float, float]] = {
    "Invert": (0, 0),
    "Cutout": (0, 20),  # side of the box in pixels, whatever the size of the image
    "Sharpness": (0, 0.9),  # change of the enhancement factor, which is 1 for no change
    "AutoContrast": (0, 0),
    "Posterize": (8, 4),  # bits kept
    "ShearX": (0, 0.3),
    "TranslateX": (0, 150 / 331),  # share of the side
    "TranslateY": (0, 150 / 331),
    "ShearY": (0, 0.3),
    "Rotate": (0, 30),  # degrees, counter-clockwise only
    "Equalize": (0, 0),
    "Contrast": (0, 0.9),
    "Color": (0, 0.9),
    "Solarize": (256, 0),  # value from which on pixels are inverted
    "Brightness": (0, 0.9),
}
_WHOLE = {"Cutout", "Posterize"}
_EITHER_WAY = {
    "Sharpness", "ShearX", "TranslateX", "TranslateY", "ShearY", "Contrast", "Color", "Brightness",
}  # fmt: skip

OPERATIONS: tuple[str, ...] = tuple(_MAGNITUDES)
"""Names of the operations RandAugment draws from."""

_GREY = (128, 128, 128)  # fills what a geometric operation leaves open
_CUTOUT_COLOUR = (125, 122, 113)  # RandAugment's own Cutout always paints this


def augment(image: Image.Image, *, seed: int | Sequence[int]) -> Image.Image:
    """One random view of an image that was already resized: Cutout, then RandAugment.

    Args:
        image: RGB, of any size; left as it is.
        seed: One or more non-negative integers, such as (seed, view, index of the image). The
            result follows from image and seed alone.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: If the image is not RGB, or a seed is negative.

    Example:
        >>> view = augment(Image.new("RGB", (64, 64)), seed=[0, 1, 42])
        >>> view.size, view.mode
        ((64, 64), 'RGB')
    """
    if image.mode != "RGB":
        raise ValueError(f"an image in mode {image.mode!r}; convert it to RGB, as read_image does")
    rng = np.random.default_rng(seed)
    image = cutout(image, rng)
    for name, level in draw_operations(rng):
        image = apply_operation(image, name, level, rng)
    return image


def cutout(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image with one box of a random colour, half as wide and high, around a random pixel.

    What lies outside the image is cut off, so that a box at a corner keeps a quarter of its area.
    Both end pixels belong to the box, as in the published code: 225 x 225 of 448 x 448.

    Args:
        image: RGB.
        rng: Source of centre and colour.
    """
    x, y = (int(rng.integers(side)) for side in image.size)
    half_width, half_height = (int(CUTOUT_FRACTION * side + 0.5) // 2 for side in image.size)
    red, green, blue = rng.integers(256, size=3).tolist()
    box = (x - half_width, y - half_height, x + half_width + 1, y + half_height + 1)
    return _painted(image, box, (red, green, blue))


def draw_operations(rng: np.random.Generator) -> list[tuple[str, int]]:
    """Name and level of the operations to apply: two are drawn, each is kept with p = 0.5.

    Args:
        rng: Source of the draws, which are uniform over operations and over levels 1 to 9.
    """
    names = rng.integers(len(OPERATIONS), size=2).tolist()
    levels = rng.integers(1, LEVELS + 1, size=2).tolist()
    kept = (rng.random(2) < PROBABILITY).tolist()
    return [
        (OPERATIONS[name], level)
        for name, level, keep in zip(names, levels, kept, strict=True)
        if keep
    ]


def magnitude(name: str, level: int) -> float:
    """How strong an operation is, in its own unit and without sign.

    Args:
        name: One of `OPERATIONS`.
        level: From 1 to 9.

    Returns:
        Pixels for Cutout, bits for Posterize, a threshold for Solarize, degrees for Rotate, a share
        of the side for shears and translations, the change of the factor for enhancements, else 0.

    Raises:
        ValueError: If there is no such operation or level.

    Example:
        >>> magnitude("Rotate", 9), magnitude("Posterize", 5)
        (30.0, 6)
    """
    if name not in _MAGNITUDES:
        raise ValueError(f"unknown operation {name!r}; there are {', '.join(OPERATIONS)}")
    if not 1 <= level <= LEVELS:
        raise ValueError(f"level {level} of {name}; use 1 to {LEVELS}")
    first, last = _MAGNITUDES[name]
    value = first + level * ((last - first) / LEVELS)  # in this order as the package rounds it
    return round(value) if name in _WHOLE else value


def apply_operation(
    image: Image.Image, name: str, level: int, rng: np.random.Generator
) -> Image.Image:
    """One operation of RandAugment.

    Args:
        image: RGB.
        name: One of `OPERATIONS`.
        level: From 1 to 9.
        rng: Source of the sign (enhancements, shears, translations) or of Cutout's centre.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: If there is no such operation or level.
    """
    value = magnitude(name, level)
    if name in _EITHER_WAY and rng.random() < 0.5:
        value = -value
    width, height = image.size
    bicubic = Image.Resampling.BICUBIC
    match name:
        case "Invert":
            return ImageOps.invert(image)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Posterize":
            return ImageOps.posterize(image, int(value))
        case "Solarize":
            # Pillow takes any number here; its annotation says int
            return ImageOps.solarize(image, value)  # type: ignore[arg-type]
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(1 + value)
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(1 + value)
        case "Color":
            return ImageEnhance.Color(image).enhance(1 + value)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(1 + value)
        case "Rotate":
            return image.rotate(value, fillcolor=_GREY)
        case "ShearX":
            return _affine(image, (1, value, 0, 0, 1, 0), bicubic)
        case "ShearY":
            return _affine(image, (1, 0, 0, value, 1, 0), bicubic)
        case "TranslateX":
            return _affine(image, (1, 0, value * width, 0, 1, 0))
        case "TranslateY":
            return _affine(image, (1, 0, 0, 0, 1, value * height))
        case "Cutout":
            x, y, half = int(rng.integers(width)), int(rng.integers(height)), int(value) // 2
            return _painted(image, (x - half, y - half, x + half, y + half), _CUTOUT_COLOUR)
    raise AssertionError(name)


def _affine(
    image: Image.Image,
    coefficients: tuple[float, ...],
    resample: Image.Resampling = Image.Resampling.NEAREST,
) -> Image.Image:
    """The image with pixel (x, y) taken from (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=_GREY
    )


def _painted(
    image: Image.Image, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> Image.Image:
    """A copy with a box (left, top, right, bottom; the last two excluded) in one colour."""
    image = image.copy()
    left, top, right, bottom = box
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    image.paste(colour, inside)
    return image
