"""CLIP's own prompts, with a threshold and a scale a class: 2 numbers each, and no projector."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dclip.fitting.batches import Batch
from dclip.logits import pair_logits, similarity_maps
from dclip.methods.head_settings import CalibratedSettings
from dclip.methods.heads import of_columns
from dclip.methods.method import Method, Task
from dclip.methods.objective import asl_of
from dclip.methods.settings import MethodSettings

SCALE = 15.0
"""Initial scale of the cosines: wherever these lie, no class is too certain to have a gradient."""


class Calibrated(Method[CalibratedSettings]):
    r"""Where presence begins, and how sharply, for each class on what CLIP says.

    DCLIP's pooling (:func:`dclip.logits.pair_logits`) of CLIP's local features by CLIP's own
    prompts, without projectors, gives a cosine :math:`s_c` of each class. ASL trains

    .. math::
        p_c = \sigma\left(a_c (s_c - \tau_c)\right), \qquad a_c > 0

    which is a scale :math:`a_c` and a bias :math:`-a_c \tau_c`. It grows with the cosine, so that
    images rank as CLIP ranks them, before training as after it: mAP can neither fall nor rise. What
    is gained are probabilities, and so a threshold.

    Args:
        settings: Hyper-parameters.
        task: Classes.
    """

    Settings: ClassVar[type[MethodSettings]] = CalibratedSettings
    scores_locations = True

    def __init__(self, settings: CalibratedSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.log_scale = nn.Parameter(torch.full((len(task.class_names),), math.log(SCALE)))
        self.threshold = nn.Parameter(torch.zeros(len(task.class_names)))

    def logits(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Log-odds that each class is present."""
        pooled = pair_logits(
            batch.local,
            self.task.pairs,
            dropped=batch.dropped,
            local_scale=self.settings.local_scale,
            pooled_scale=1 / self.settings.local_scale,
        )
        return self._calibrated(pooled[:, 0], pooled[:, 1], dim=-1)

    def _calibrated(self, absent: Tensor, present: Tensor, *, dim: int) -> Tensor:
        """Log-odds of cosines whose classes lie along an axis."""
        asked = present - absent if self.settings.asks == "pair" else present
        shape = [1] * asked.ndim
        shape[dim] = -1
        return self.log_scale.exp().view(shape) * (asked - self.threshold.view(shape))

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The weighted ASL, and ASL."""
        present = self.logits(batch)
        asl = asl_of(self.settings, torch.stack([torch.zeros_like(present), present], 1), batch)
        return {"loss": self.settings.asl_weight * asl, "asl": asl}

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probability that each class is present."""
        return self.logits(batch).sigmoid()

    def evidence(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Its logits."""
        return self.logits(batch)

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Cosine with the prompt of presence."""
        return similarity_maps(local, self.task.positives)

    def location_logits(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """What is said of a location, as if the image had no other."""
        return self._calibrated(*similarity_maps(local, self.task.pairs).chunk(2, dim=1), dim=1)

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """The prompts of presence as CLIP encodes them."""
        return self.task.positives

    def watch(self) -> dict[str, float]:
        """Means over the classes."""
        return {
            "scale": float(self.log_scale.exp().mean()),
            "threshold": float(self.threshold.mean()),
        }

    def for_classes(self, task: Task) -> Method[CalibratedSettings]:
        """Its own classes, or some of them.

        Raises:
            ValueError: One is none of those it was trained on.
        """
        return of_columns(self, task)
