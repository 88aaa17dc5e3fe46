"""Pixels through a frozen backbone, batch after batch."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor

from dclip.backbones import Backbone, ImageFeatures
from dclip.data.pixels import normalise
from dclip.precision import computing_in


def encode_batches(
    backbone: Backbone,
    batches: Iterable[UInt8[Tensor, "_ height width 3"]],
    *,
    kind: str = "value",
    precision: str = "float32",
    device: str = "cpu",
) -> Iterator[ImageFeatures]:
    """Features of each batch, in float32 on the device.

    Args:
        backbone: Frozen, on the device.
        batches: RGB, of any number of images each.
        kind: Which local features.
        precision: As for `computing_in`.
        device: ``"cpu"`` or ``"cuda"``.
    """
    for pixels in batches:
        images = normalise(pixels.to(device), backbone.mean, backbone.std)
        with torch.no_grad(), computing_in(precision, device):
            features = backbone.encode_images(images, kind=kind)
        yield ImageFeatures(features.embedding.float(), features.local.float())
