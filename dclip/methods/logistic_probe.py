"""Logistic regression on one vector an image: what a linear classifier gets at its optimum."""

import logging
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.fitting.batches import Batch, FeatureSource
from dclip.fitting.logistic import fit_logistic
from dclip.methods.head_settings import LogisticProbeSettings
from dclip.methods.heads import image_vectors, of_columns, read_vectors
from dclip.methods.method import Method, Task
from dclip.methods.settings import MethodSettings

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Norm of the gradient at which the regression of a class is at its optimum."""


class LogisticProbe(Method[LogisticProbeSettings]):
    """A linear classifier a class on the unit vector of an image, fitted to convergence.

    The objective is scikit-learn's (:func:`dclip.fitting.logistic.fit_logistic`). Locations are
    scored by the same weights, as class activation maps are: their mean is what was trained on.

    Args:
        settings: Hyper-parameters.
        task: Classes.
    """

    Settings: ClassVar[type[MethodSettings]] = LogisticProbeSettings
    scores_locations = True

    def __init__(self, settings: LogisticProbeSettings, task: Task) -> None:
        super().__init__(settings, task)
        names = task.class_names
        # float32 would move the optimum by more than the gradient there
        self.weight = nn.Parameter(torch.zeros(len(names), task.dim, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(len(names), dtype=torch.float64))

    def fit(
        self,
        features: FeatureSource,
        rows: Int64[np.ndarray, " rows"],
        *,
        seed: int,  # noqa: ARG002 - the optimum is one, wherever a search begins
    ) -> dict[str, float]:
        """Fit in place; the largest norm of a class's gradient, and the most steps of one."""
        vectors, labels = read_vectors(self.settings, features, rows, self.weight.device)
        fitted = fit_logistic(vectors, labels, c=self.settings.c, tolerance=TOLERANCE)
        if fitted.gradient_norm > TOLERANCE:
            log.warning(
                "logistic regression stopped after %d steps short of its optimum: the norm of the "
                "gradient is %.1e, not %.0e; use a smaller c than %g",
                fitted.steps, fitted.gradient_norm, TOLERANCE, self.settings.c,
            )  # fmt: skip
        with torch.no_grad():
            self.weight.copy_(fitted.weight)
            self.bias.copy_(fitted.bias)
        return {"gradient_norm": fitted.gradient_norm, "steps": fitted.steps}

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probability that each class is present."""
        vectors = image_vectors(batch, self.settings.of)
        return F.linear(vectors.double(), self.weight, self.bias).sigmoid().float()

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Logit of each class at each location, taken for an image of its own."""
        unit = F.normalize(local.float(), dim=-1)
        return F.linear(unit, self.weight.float(), self.bias.float()).mT

    def location_logits(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Logit of each class at each location, taken for an image of its own."""
        return self.location_scores(local)

    def for_classes(self, task: Task) -> Method[LogisticProbeSettings]:
        """Its own classes, or some of them.

        Raises:
            ValueError: One is none of those it was trained on.
        """
        return of_columns(self, task)
