"""Images to the square a network takes: centre crop, random resized crop, or their own size.

Features are made of squares as a backbone prepares them (`dclip.data.preparation`): for CLIP's own,
all of the image squeezed, as DCLIP does. CLIP itself, and the methods that train through it, cut
the square out of the middle, or at random.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from dclip.data.preparation import SQUARE, Preparation

Form = Literal["crop", "square", "native"]
"""How an image becomes pixels: its middle as CLIP prepares it, a square as features of the backbone
are made of (all of the image squeezed, where nothing else is said), or all of it at its own size,
one image a batch."""

SCALE = (0.08, 1.0)
"""Share of an image's area that a random crop has."""

RATIO = (3 / 4, 4 / 3)
"""Width of a random crop over its height."""

_TRIES = 10  # for a box that fits into the image


class Crop(NamedTuple):
    """A box of an image and whether it is mirrored.

    Attributes:
        box: Left, top, right, bottom in pixels; the last two excluded.
        is_mirrored: Left to right.
    """

    box: tuple[float, float, float, float]
    is_mirrored: bool = False

    def of(
        self,
        image: Image.Image,
        side: int,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Image.Image:
        """This part of an image as a square.

        Args:
            image: Of the size the box was made for.
            side: Of the square, in pixels.
            resample: Bicubic for pixels, nearest for masks.
        """
        # reducing_gap is left out: it would change pixels
        square = image.resize((side, side), resample, box=self.box)
        return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.is_mirrored else square


def centre_crop(size: tuple[int, int]) -> Crop:
    """The largest square in the middle, as CLIP's own preparation takes it.

    Args:
        size: Width and height in pixels.

    Example:
        >>> centre_crop((640, 480)).box
        (80.0, 0.0, 560.0, 480.0)
    """
    width, height = size
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    return Crop((left, top, left + side, top + side))


def random_crop(size: tuple[int, int], rng: np.random.Generator) -> Crop:
    """A random part of an image, in half of all cases mirrored.

    Its area is a share of the image's, uniform on `SCALE`; the logarithm of its ratio is uniform
    on that of `RATIO`. Where ten of these do not fit into the image, it is the largest box in the
    middle whose ratio is in the range.

    Args:
        size: Width and height in pixels.
        rng: Source of the draws.

    References:
        Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, as torchvision's
        RandomResizedCrop has it.
    """
    width, height = size
    logs = np.log(RATIO)
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*logs))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            break
    else:
        wide = min(width, round(height * RATIO[1]))
        high = min(height, round(width / RATIO[0]))
        left, top = (width - wide) // 2, (height - high) // 2
    return Crop((left, top, left + wide, top + high), bool(rng.random() < 0.5))


def to_stride(image: Image.Image, stride: int) -> Image.Image:
    """An image at its own size, stretched to the next multiples of a stride.

    Args:
        image: RGB.
        stride: Of the network, in pixels.
    """
    width, height = (-(-side // stride) * stride for side in image.size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def as_pixels(
    image: Image.Image, side: int, form: Form, preparation: Preparation = SQUARE
) -> Image.Image:
    """An image as a network takes it.

    Args:
        image: RGB.
        side: Of the square in pixels; the stride of the network where an image keeps its size.
        form: How.
        preparation: That of the backbone, for the form ``"square"``.
    """
    if form == "crop":
        return centre_crop(image.size).of(image, side)
    return preparation(image, side) if form == "square" else to_stride(image, side)


def mask_of(image: Image.Image) -> Bool[np.ndarray, "height width"]:
    """Where a mask is not 0."""
    inside: np.ndarray = np.asarray(image.convert("L")) > 0
    return inside
