"""Tip-Adapter: what the nearest training images show, beside CLIP's own scores."""

import logging
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dclip.fitting.batches import Batch, FeatureSource
from dclip.fitting.drawn import part_of
from dclip.fitting.subset import Subset
from dclip.logits import zero_shot_scores
from dclip.methods.head_settings import TipAdapterSettings
from dclip.methods.heads import image_vectors, read_vectors
from dclip.methods.method import Method, Task
from dclip.methods.settings import MethodSettings
from dclip.prompts import best_phrasing
from dclip.words import counted

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
"""Of a cache; more is refused."""

_MANY_BYTES = 1 << 26  # of a cache that is told of as large


class TipAdapter(Method[TipAdapterSettings]):
    r"""A cache of training images and their labels, added to CLIP's own scores; without training.

    With unit vectors :math:`v` of an image, :math:`k_i` of the cached ones and :math:`t_c` of the
    classes' texts, labels :math:`y_{ic}`, and sums over the images i whose label of c is known,

    .. math::
        s_c = 100 \, v \cdot t_c + \alpha \,
            \frac{\sum_i A_i \, [y_{ic} = 1]}{\sum_i A_i}, \qquad
        A_i = \exp(-\beta (1 - v \cdot k_i))

    The affinity A, its sharpness beta and the sum with CLIP's logits are Tip-Adapter's. Ours are
    label vectors in the place of one class an image, and the denominator: the paper adds up
    affinities alone, over as many images of each class. With other numbers of each, and labels
    that are not known, such a sum tells how common a class is and how far it was annotated; its
    share does not. So alpha counts in units of CLIP's logits, and is no number of the paper's.

    The cache is kept in the checkpoint: vectors in float16, labels in int8.

    Args:
        settings: Hyper-parameters.
        task: Classes.

    References:
        Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
        ECCV 2022, arXiv:2207.09519, equations 4 to 6.
    """

    Settings: ClassVar[type[MethodSettings]] = TipAdapterSettings
    gives_probabilities = False
    grows = frozenset({"vectors", "labels"})

    def __init__(self, settings: TipAdapterSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.vectors: Tensor
        self.labels: Tensor
        self.register_buffer("vectors", torch.empty(0, task.dim, dtype=torch.float16))
        empty = torch.empty(0, len(task.class_names), dtype=torch.int8)
        self.register_buffer("labels", empty)

    def fit(
        self, features: FeatureSource, rows: Int64[np.ndarray, " rows"], *, seed: int
    ) -> dict[str, float]:
        """Fill the cache; how many images it holds, and in how many megabytes.

        Raises:
            ValueError: It would be larger than :data:`MOST_BYTES`, or there is nothing to cache.
        """
        names = self.task.class_names
        if self.settings.shots is not None:
            subset = Subset(shots=self.settings.shots)
            rows = part_of(subset, features, rows, names, seed=seed).rows
        size = len(rows) * (2 * self.task.dim + len(names))
        what = f"a cache of {counted(len(rows), 'image')} takes {size / 1e6:,.0f} MB"
        if size > MOST_BYTES:
            raise ValueError(
                f"{what}, and {MOST_BYTES / 1e6:,.0f} MB is the most; give shots, so that it holds "
                "so many of each class"
            )
        if size > _MANY_BYTES:
            log.warning("%s, in memory and in the checkpoint; shots makes it smaller", what)
        vectors, labels = read_vectors(self.settings, features, rows, self.vectors.device)
        self.vectors, self.labels = vectors.half(), labels.to(torch.int8)
        return {"cached_images": len(rows), "cache_megabytes": size / 1e6}

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """CLIP's logits, in [-100, 100], and alpha times what the cache says, in [0, 1]."""
        own, texts = self.settings, self.task.texts
        vectors = image_vectors(batch, own.of)
        frozen = zero_shot_scores(vectors, texts.features.float())
        frozen = best_phrasing(frozen[..., None], texts.classes)[..., 0]
        return frozen + own.alpha * self.shares(vectors)

    def shares(self, vectors: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        """What the cache says: the share of each class among images alike; 0 where none is known.

        Args:
            vectors: Of unit length.
        """
        alike = vectors.double() @ self.vectors.double().mT
        # float64, in which no affinity vanishes; a factor of all would cancel
        affinity = torch.exp(-self.settings.beta * (1 - alike))
        present = affinity @ (self.labels == 1).double()
        known = affinity @ (self.labels != -1).double()
        return torch.where(known > 0, present / known, 0).float()

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """The positive prompts as CLIP encodes them."""
        return self.task.positives

    def for_classes(self, task: Task) -> Method[TipAdapterSettings]:
        """Its own classes, or some of them.

        Raises:
            ValueError: One is none of those it was trained on.
        """
        columns = self.own_columns(task)
        other = type(self)(self.settings, task)
        other.vectors, other.labels = self.vectors, self.labels[:, columns]
        return other.train(self.training)
