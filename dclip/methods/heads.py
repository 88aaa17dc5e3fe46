"""What heads on frozen features share: the vector of an image, and classes they are bound to."""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor
from torch.nn import functional as F

from dclip.fitting.batches import Batch, FeatureSource, read_batch
from dclip.methods.head_settings import Vector, VectorSettings
from dclip.methods.method import Method, Task

M = TypeVar("M", bound=Method[Any])

_ROWS_PER_READ = 256


def image_vectors(batch: Batch, of: Vector) -> Float32[Tensor, "images dim"]:
    """One vector an image, of unit length.

    Length would tell which backbone it is (that of the small CLIP's mean is 279, that of ViT-B/32's
    about 3), and little of what an image shows.

    Args:
        batch: Images.
        of: ``"mean"`` of the local features, the mean token among them, or ``"embedding"``.
    """
    if of == "embedding":
        assert batch.embedding is not None  # as it is what is fed
        return F.normalize(batch.embedding.float(), dim=-1)
    return F.normalize(batch.local.mean(1, dtype=torch.float32), dim=-1)


def read_vectors(
    settings: VectorSettings,
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    device: torch.device,
) -> tuple[Float32[Tensor, "rows dim"], Int[Tensor, "rows classes"]]:
    """Vectors and labels of some rows, on a device.

    Args:
        settings: Say which vectors.
        features: Of the images, clean.
        rows: One or more.
        device: Where the vectors lie.

    Raises:
        ValueError: There are no rows, or the source lacks what is fed.
    """
    if not len(rows):
        raise ValueError("there are no images to train on")

    def parts() -> Iterator[Tensor]:
        for some in np.array_split(rows, -(-len(rows) // _ROWS_PER_READ)):
            batch = read_batch(features, some, settings.scoring_feeds())
            yield image_vectors(batch.to(device), settings.of)

    return torch.cat([*parts()]), features.labels[torch.from_numpy(rows)].to(device)


@torch.no_grad()
def of_columns(method: M, task: Task) -> M:
    """The same weights, asked of its own classes, or some of them; each weight has a row a class.

    Args:
        method: Trained.
        task: Classes, in any order.

    Raises:
        ValueError: One is none of those it was trained on.
    """
    columns = method.own_columns(task)
    other = type(method)(method.settings, task)
    for name, weight in method.named_parameters():
        own = other.get_parameter(name)
        own.data = weight[columns].clone()
    return other.train(method.training)
