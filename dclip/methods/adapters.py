"""What the adapters share: each class has one text, whose cosine with the locations is pooled."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from dclip.fitting.batches import Batch, FeatureSource, clean_batches, evenly
from dclip.logits import pool_cosines
from dclip.losses.asymmetric import summed_asymmetric_loss
from dclip.methods.adapter_settings import AdapterSettings
from dclip.methods.method import Method, Task, WeightRule
from dclip.methods.objective import watched_cosine
from dclip.prompts import best_phrasing

SCALE = 10.0
"""Scale of every class, before training images are seen."""

A = TypeVar("A", bound=AdapterSettings)


class AdapterMethod(Method[A]):
    r"""Base of methods that adapt what is compared, and let ASL train it.

    With cosines :math:`o_{lc}` of location l and the adapted text of class c,

    .. math::
        s_c = a_c \Big( \sum_l w_{lc} \, o_{lc} - b_c \Big), \qquad
        w_{lc} = \mathrm{softmax}_l (20 \, o_{lc})

    is the logit of its presence. Scale and offset of each class are trained: CLIP's cosines say
    which image is likelier to have a class, not where "likely" begins, and no text of absence is
    needed. They begin where the training images and their labels have them, so that nothing else
    has to learn it: else whatever is trained first moves all cosines up or down, and away from what
    CLIP knows. Before the first step the order of the images is CLIP's own.

    Args:
        settings: Hyper-parameters.
        task: Classes.
    """

    scores_locations = True

    def __init__(self, settings: A, task: Task) -> None:
        super().__init__(settings, task)
        classes = len(task.class_names)
        self.log_scale = nn.Parameter(torch.full((classes,), math.log(SCALE)))
        self.offset = nn.Parameter(torch.zeros(classes))

    @torch.no_grad()
    def prepare(self, features: FeatureSource, rows: Int64[np.ndarray, " rows"]) -> None:
        """Let the logits of each class have deviation 1 around its log-odds of being there."""
        rows = evenly(rows, len(self.task.class_names))
        batches = clean_batches(features, rows, self.offset.device, 256)
        cosines = torch.cat([self.pooled(batch) for batch in batches])
        deviation = cosines.std(0, correction=0).clamp_min(0.001)
        labels = features.labels[rows].to(cosines.device)
        known, there = (labels != -1).sum(0), (labels == 1).sum(0)
        mean = ((there.sum() + 1) / (known.sum() + 2)).to(cosines.dtype)  # of one more image each
        odds = torch.logit((there + mean) / (known + 1))
        self.log_scale.copy_(-deviation.log())
        self.offset.copy_(cosines.mean(0) - odds * deviation)

    def compare(
        self,
        local: Float[Tensor, "images locations dim"],
        texts: Float[Tensor, "texts dim"],
        classes: Int64[Tensor, " texts"] | None = None,
    ) -> Float[Tensor, "images texts locations"]:
        """Adapted cosine of each text with each location.

        Args:
            local: Local features as CLIP has them.
            texts: Text features as CLIP has them.
            classes: Which class each text speaks of; left out: each of its own, in order.
        """
        raise NotImplementedError

    def logits(self, cosines: Float[Tensor, "*axes classes"]) -> Float[Tensor, "*axes classes"]:
        """Log-odds of a cosine with each class."""
        return self.log_scale.exp() * (cosines - self.offset)

    def pooled(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Cosine of each class's positive prompt, pooled where it fits best."""
        return pool_cosines(
            self.compare(batch.local, self.task.positives),
            dropped=batch.dropped,
            local_scale=self.settings.local_scale,
        )

    def asl(
        self, logits: Float[Tensor, "images classes"], labels: Int[Tensor, "images classes"]
    ) -> Float[Tensor, ""]:
        """ASL of presence logits, summed."""
        own = self.settings
        pairs = torch.stack([torch.zeros_like(logits), logits], dim=1)
        return summed_asymmetric_loss(
            pairs, labels, gamma_neg=own.gamma_neg, gamma_pos=own.gamma_pos, clip=own.clip
        )

    def main_loss(self, pooled: Float[Tensor, "images classes"], batch: Batch) -> Float[Tensor, ""]:
        """ASL on what was pooled, a mean over the known labels."""
        return self.asl(self.logits(pooled), batch.labels) / max(1, batch.known)

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probability that each class is present."""
        return self.logits(self.pooled(batch)).sigmoid()

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Adapted cosines, the largest of each class's phrasings."""
        texts = self.task.texts
        return best_phrasing(self.compare(local, texts.features, texts.classes), texts.classes)

    def location_logits(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """What is said of a class there, as if the image had no other location."""
        cosines = self.compare(local, self.task.positives)
        return self.logits(cosines.mT).mT

    def weight_rules(self) -> dict[str, WeightRule]:
        """Scales and offsets step further: there are few."""
        return dict.fromkeys(("log_scale", "offset"), WeightRule(lr_factor=10.0))

    def watch(self) -> dict[str, float]:
        """Mean cosine between the adapted texts of different classes."""
        features = self.class_features()
        assert features is not None
        return watched_cosine(features)

    def for_classes(self, task: Task) -> Method[A]:
        """Any classes; one that was not trained on has the mean scale and offset of those."""
        places = [-1 if column is None else column for column in self.columns_of(task)]
        other = self.with_task(task)
        assert isinstance(other, AdapterMethod)
        other._parameters = self._parameters | self._of_places(task.class_names, places)
        return other

    def _of_places(
        self,
        class_names: Sequence[str],  # noqa: ARG002 - for those that refuse some
        places: Sequence[int],
    ) -> dict[str, Any]:
        """Weights of classes by their places among its own, -1 for one that is none of them."""
        found = {}
        for name in ("log_scale", "offset"):
            weight = self.get_parameter(name).detach()
            found[name] = nn.Parameter(torch.cat([weight, weight.mean(0, keepdim=True)])[places])
        return found
