r"""Multi-label scores from an image and its segments: what CLIP says of each, one by one.

CLIP's global embedding sees the one prominent object. Here the image is cut into segments first;
the box around each is a picture of its own, and CLIP scores it. With :math:`g` the softmax over
classes of the image's scores and :math:`s_j` that of segment :math:`j`,

.. math::
    \ell_c = \max_j s_{jc}, \qquad \text{score}_c = (1 - w) \, g_c + w \, \ell_c

The paper's Table 5 does so with the masks of DCLIP; of its way to combine the two nothing is known,
so this one is ours.

References:
    Rawlekar et al., "Efficiently Disentangling CLIP for Multi-Object Perception", arXiv:2502.02977,
    Table 5; a relative: Lin et al., "TagCLIP", AAAI 2024, arXiv:2312.12828.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dclip.segmentation import LabelMap


class Box(NamedTuple):
    """Pixels of an image: ``left`` and ``top`` are inside, ``right`` and ``bottom`` are not."""

    left: int
    top: int
    right: int
    bottom: int


def segment_boxes(mask: LabelMap, *, area: float) -> list[Box]:
    """The box around all pixels of each class, the smallest class value first.

    Args:
        mask: Class of every pixel.
        area: Share of the image, in [0, 1); classes with fewer pixels are left out, but never the
            largest one.

    Example:
        >>> segment_boxes(torch.tensor([[1, 1, 0], [1, 2, 0]], dtype=torch.uint8), area=0.3)
        [Box(left=2, top=0, right=3, bottom=2), Box(left=0, top=0, right=2, bottom=2)]
    """
    pixels = torch.bincount(mask.flatten().long())
    floor = min(area * mask.numel(), int(pixels.max()))
    boxes = []
    for value in ((pixels >= floor) & (pixels > 0)).nonzero().flatten().tolist():
        own = mask == value
        rows = own.any(dim=1).nonzero().flatten()
        columns = own.any(dim=0).nonzero().flatten()
        boxes.append(Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return boxes


def fuse_scores(
    whole: Float[Tensor, "images classes"], segments: Float[Tensor, "images classes"], weight: float
) -> Float[Tensor, "images classes"]:
    """The weighted mean of what the images and their segments say.

    Args:
        whole: Softmax over classes of each image.
        segments: Of each class the largest softmax among the image's segments.
        weight: Of the segments, in [0, 1].

    Raises:
        ValueError: If the weight is out of range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in [0, 1], got {weight}")
    return torch.lerp(whole, segments, weight)
