"""PositiveCoOp: a learned context of presence, a free vector of absence; and its baseline."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.fitting.batches import Batch
from dclip.logits import pooled_linear_logits
from dclip.losses.asymmetric import presence_logit
from dclip.methods.method import Method, Task, WeightRule
from dclip.methods.pairs import ContextMethod, PairMethod
from dclip.methods.settings import (
    MethodSettings,
    PositiveCoOpBaselineSettings,
    PositiveCoOpSettings,
)


class PositiveCoOp(ContextMethod[PositiveCoOpSettings]):
    """A context of presence through the text tower; absence is a free vector for each class.

    The authors add a free vector to the text of presence, too, and let both tables start as normal
    noise, which at first outweighs the text.

    Args:
        settings: Hyper-parameters.
        task: Classes, with the backbone.

    References:
        Rawlekar et al., "Rethinking Prompting Strategies for Multi-Label Recognition with Partial
        Annotations", WACV 2025, arXiv:2409.08381.
    """

    Settings: ClassVar[type[MethodSettings]] = PositiveCoOpSettings

    def __init__(self, settings: PositiveCoOpSettings, task: Task) -> None:
        super().__init__(settings, task)
        shape = len(task.class_names), task.dim
        self.positive = self.new_context()
        self.free_negative = nn.Parameter(torch.randn(shape))
        if settings.positive_offset:
            self.free_positive = nn.Parameter(settings.offset_std * torch.randn(shape))

    def initialise(self) -> None:
        """Let absence start at what the texts of presence share, if the settings say so.

        Noise is at right angles with what locations look like, and presence is not: every class is
        certain to be everywhere then, unless noise drowns the text of presence, too. Certainty has
        no gradient.
        """
        if self.settings.free_start == "neutral":
            with torch.no_grad():
                self.free_negative.copy_(self.rows()[len(self.free_negative) :].mean(0))

    def rows(self) -> Float[Tensor, "pairs dim"]:
        """Free vectors of absence, then texts of presence."""
        present = self.encode(self.positive)
        if self.settings.positive_offset:
            present = present + self.free_positive
        return torch.cat([self.free_negative.to(present.dtype), present])

    def weight_rules(self) -> dict[str, WeightRule]:
        """The context steps less than the free vectors do."""
        return {"positive": WeightRule(lr_factor=self.settings.context_lr_factor)}


class PositiveCoOpBaseline(PairMethod[PositiveCoOpBaselineSettings]):
    """One linear map of local features to a pair of scores for each class, without any text.

    The authors' ablation: what is left of PositiveCoOp when CLIP's texts are taken away. Scores
    are no cosines; each is pooled by its own softmax over the locations.

    Args:
        settings: Hyper-parameters.
        task: Classes.
    """

    Settings: ClassVar[type[MethodSettings]] = PositiveCoOpBaselineSettings

    def __init__(self, settings: PositiveCoOpBaselineSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.linear = nn.Linear(task.dim, 2 * len(task.class_names))
        if settings.initial == "zero":
            for weight in self.linear.parameters():
                nn.init.zeros_(weight)

    def pair_logits(
        self,
        batch: Batch,
        rows: Float[Tensor, "pairs _"] | None = None,  # noqa: ARG002 - there are none
    ) -> Float[Tensor, "images 2 classes"]:
        """Pooled scores."""
        return pooled_linear_logits(
            self._of_locations(batch.local),
            dropped=batch.dropped,
            pooled_scale=self.settings.pooled_scale,
        )

    def _of_locations(self, local: Tensor) -> Float[Tensor, "images locations pairs"]:
        return F.linear(local.to(self.linear.weight.dtype), self.linear.weight, self.linear.bias)

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Score of presence."""
        return self._of_locations(local).chunk(2, dim=-1)[1].mT

    def location_logits(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """What the class's pair says there, as if the image had no other location."""
        pairs = torch.stack(self._of_locations(local).chunk(2, -1), -2)
        pairs = self.settings.pooled_scale * pairs
        return presence_logit(pairs, form=self.settings.asl_form).mT

    def _of_rows(self, task: Task, rows: Sequence[int]) -> Method[PositiveCoOpBaselineSettings]:
        other = self.with_task(task)
        assert isinstance(other, PositiveCoOpBaseline)
        linear = nn.Linear(self.task.dim, len(rows), device="meta")
        linear.weight = nn.Parameter(self.linear.weight[list(rows)])
        linear.bias = nn.Parameter(self.linear.bias[list(rows)])
        other._modules = {**self._modules, "linear": linear}
        return other
