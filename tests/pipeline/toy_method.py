"""A method of a user's own, in one file: cosines of masked features, a mask for every class."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.fitting.batches import Batch
from dclip.methods.method import Method, Task
from dclip.methods.settings import MethodSettings


class MaskedSettings(MethodSettings):
    """Settings of masked cosines."""

    name = "masked_cosine"
    title = "masked cosines"
    may_differ = frozenset({"sparsity"})
    watched: ClassVar = {"open": "open"}
    sweep_space: ClassVar = {"sparsity": [0.0, 0.1]}

    sparsity: float = Field(0.01, ge=0, description="weight of the mean of the masks")
    scale: float = Field(20.0, gt=0, description="multiplier of the cosines")


class MaskedCosine(Method[MaskedSettings]):
    """Each class looks at the dimensions that its mask lets through."""

    Settings = MaskedSettings
    scores_locations = True

    def __init__(self, settings: MaskedSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.mask = nn.Parameter(0.1 * torch.randn(task.dim))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("sparsity", torch.tensor(settings.sparsity), persistent=False)

    def location_scores(self, local: Tensor) -> Tensor:
        gate = self.mask.sigmoid()
        texts = F.normalize(self.task.texts.features * gate, dim=-1)
        return (F.normalize(local * gate, dim=-1) @ texts.T).mT

    def location_logits(self, local: Tensor) -> Tensor:
        return self.settings.scale * self.location_scores(local) + self.bias

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.location_logits(batch.local).amax(-1)
        known = batch.labels >= 0
        bce = F.binary_cross_entropy_with_logits(logits, (batch.labels == 1).float(), known.float(),
                                                 reduction="sum") / max(1, batch.known)  # fmt: skip
        mask = self.mask.sigmoid().mean() / batch.workers
        return {"loss": bce + self.sparsity * mask, "bce": bce, "mask": mask}

    def scores(self, batch: Batch) -> Tensor:
        return self.location_logits(batch.local).amax(-1).sigmoid()

    def watch(self) -> dict[str, float]:
        return {"open": float((self.mask > 0).float().mean())}
