"""DCLIP in a few lines: one flat recipe, packs of its trainings, what a trained model says.

The stages know methods by their settings (:mod:`dclip.methods`); this is the short way for a
notebook, on the same loop.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import model_validator
from torch import Tensor

from dclip.fitting.batches import FeatureSource
from dclip.fitting.fit import scores_of
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task
from dclip.methods.settings import DCLIPSettings
from dclip.model import DCLIP


class Recipe(DCLIPSettings, Loop):
    """Hyper-parameters of a training of DCLIP: those of the method and those of the loop.

    Fields left out take the value of ``preset``, ``anchored`` if none is named; the defaults shown
    are those of ``robust``. See :class:`dclip.methods.settings.DCLIPSettings`. Sources: arXiv
    2502.02977 (lambda, c, epochs, learning rate), the authors' code (the rest).

    Example:
        >>> Recipe(preset="author").mfi_weight
        7e-05
        >>> Recipe(preset="author", mfi_weight=0.0).asl_reduction
        'sum'
    """

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = cls.preset_values(values.get("preset", cls.usual_preset()))
        return {**preset.loop, **preset.own, **values}

    @property
    def method(self) -> DCLIPSettings:
        """What is DCLIP's own."""
        return DCLIPSettings.model_validate(self.model_dump(include={*DCLIPSettings.model_fields}))

    @property
    def loop(self) -> Loop:
        """What is the loop's."""
        return Loop.model_validate(self.model_dump(include={*Loop.model_fields}))


class Training(Pack):
    """Trainings of DCLIP that share every step (see :class:`dclip.fitting.pack.Pack`).

    Args:
        recipes: Hyper-parameters of each training; they differ in ``mfi_weight``,
            ``redundancy_weight`` and ``output_dim`` alone.
        texts: Text features of the prompt pairs, negatives first, unnormalised.
        seeds: Seed of the initial weights of each member.
        device: Where weights live.

    Raises:
        ValueError: There is no member, the numbers of recipes and seeds differ, or recipes differ
            in fields that must be common.

    Example:
        >>> training = Training([Recipe()], torch.randn(6, 64), seeds=[0])
        >>> training.model().sizes
        ProjectorSizes(embed_dim=64, hidden_dim=48, output_dim=32)
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        texts: Float[Tensor, "pairs dim"],
        *,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if not recipes or len(recipes) != len(seeds):
            raise ValueError(f"{len(recipes)} recipes and {len(seeds)} seeds make no pack")
        self.recipes = tuple(recipes)
        loops = [recipe.loop.model_dump() for recipe in recipes]
        unlike = [key for key in loops[0] if any(one[key] != loops[0][key] for one in loops)]
        if unlike:
            raise ValueError(
                f"members of a pack must agree in {', '.join(unlike)}; they may differ in "
                f"{', '.join(sorted(DCLIPSettings.may_differ))}"
            )
        super().__init__(
            DCLIPMethod,
            [recipe.method for recipe in recipes],
            recipes[0].loop,
            _task(texts),
            seeds=seeds,
            device=device,
        )

    def model(self, member: int = 0, *, selected: bool = True) -> DCLIP:
        """Projectors of one member, on the CPU, in evaluation mode.

        Args:
            member: Number of the member.
            selected: Take the epoch that the recipe's ``selection`` says; otherwise the last.
        """
        method = self.method(member, selected=selected)
        assert isinstance(method, DCLIPMethod)
        return method.model.cpu()


def predict(
    model: DCLIP,
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    texts: Float[Tensor, "pairs dim"],
    *,
    batch_size: int = 256,
) -> Float[Tensor, "rows classes"]:
    """Probability of presence of every class in every given row, on the CPU.

    Args:
        model: Trained projectors; the mode they are in is restored afterwards.
        features: Cached local features.
        rows: Rows to look at.
        texts: Text features of the prompt pairs, negatives first, on the model's device.
        batch_size: Rows per forward pass.
    """
    method = DCLIPMethod.around(model, _task(texts))
    return scores_of(method, features, rows, batch_size=batch_size)


def _task(texts: Float[Tensor, "pairs dim"]) -> Task:
    """Classes of which nothing but their texts is known: they are called by their numbers."""
    return Task.of_features([str(number) for number in range(len(texts) // 2)], texts)
