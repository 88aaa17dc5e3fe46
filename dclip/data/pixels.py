"""Pixels to what a CLIP takes: values in its normalisation, on any device."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dclip.data.preparation import SQUARE, Preparation


def normalise(
    pixels: UInt8[Tensor, "images height width 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "images 3 height width"]:
    """Pixels as CLIP wants them, on the device they are on; channels stay last in memory.

    Args:
        pixels: RGB.
        mean: Channel means to subtract from values in [0, 1].
        std: Channel deviations to divide by, positive.
    """
    centre, width = (pixels.new_tensor(each, dtype=torch.float32) for each in (mean, std))
    return ((pixels.float() / 255 - centre) / width).permute(0, 3, 1, 2)


def image_to_tensor(
    image: Image.Image,
    resolution: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    preparation: Preparation = SQUARE,
) -> Float[Tensor, "3 resolution resolution"]:
    """One image, made a square by a preparation and normalised by `normalise`."""
    pixels = torch.from_numpy(np.array(preparation(image, resolution)))
    return normalise(pixels[None], mean, std)[0].contiguous()
