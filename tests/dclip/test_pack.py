"""Packs of any method: buffers that training moves, and parameters that it leaves alone."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.fitting.batches import Batch, MemoryFeatures, read_batch
from dclip.fitting.fit import fit
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.method import Method, Task
from dclip.methods.settings import MethodSettings


class NormalisedSettings(MethodSettings):
    name = "normalised"
    title = "normalised"


class Normalised(Method[NormalisedSettings]):
    """A linear map of normalised features, with a scale that is frozen."""

    Settings: ClassVar = NormalisedSettings

    def __init__(self, settings: NormalisedSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.norm = nn.BatchNorm1d(task.dim)
        self.output = nn.Linear(task.dim, len(task.class_names))
        self.scale = nn.Parameter(torch.tensor(3.0), requires_grad=False)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(task.dim))

    def initialise(self) -> None:
        self.mean.copy_(self.task.pairs.mean(0))

    def _logits(self, batch: Batch) -> Tensor:
        pooled = batch.local.mean(1) - self.mean
        logits: Tensor = self.scale * self.output(self.norm(pooled))
        return logits

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.binary_cross_entropy_with_logits(
            self._logits(batch), (batch.labels == 1).float()
        )}  # fmt: skip

    def scores(self, batch: Batch) -> Tensor:
        return self._logits(batch).sigmoid()


def scene() -> tuple[MemoryFeatures, Task]:
    generator = torch.Generator().manual_seed(0)
    local = 2 + torch.randn(16, 4, 6, generator=generator)
    labels = (torch.rand(16, 3, generator=generator) < 0.5).int()
    task = Task.of_features(["a", "b", "c"], torch.randn(6, 6, generator=generator))
    return MemoryFeatures(local, labels, grid=(2, 2)), task


@pytest.mark.parametrize("trials", [1, 2])
def test_a_kept_state_holds_what_training_moves_besides_weights(trials: int) -> None:
    features, task = scene()
    settings, loop = [NormalisedSettings()] * trials, Loop(epochs=2, batch_size=8)
    pack = Pack(Normalised, settings, loop, task, seeds=range(trials))
    rows = np.arange(16)
    fit(pack, features, rows, seed=0)
    again = Pack(Normalised, settings, loop, task, seeds=[9] * trials, fresh=False)
    again.load_state_tensors(pack.state_tensors())
    for trial in range(trials):
        before, after = (one.method(trial).state_dict() for one in (pack, again))
        assert before["norm.running_mean"].abs().max() > 0.1
        assert before["mean"].abs().max() > 0
        for name, value in before.items():
            assert torch.equal(after[name], value), name
    assert torch.equal(again.predict(features, rows), pack.predict(features, rows))


@pytest.mark.parametrize("trials", [1, 2])
def test_what_a_method_freezes_is_not_trained(trials: int) -> None:
    features, task = scene()
    loop = Loop(epochs=2, batch_size=8, weight_decay=0.5, lr=0.1)
    pack = Pack(Normalised, [NormalisedSettings()] * trials, loop, task, seeds=range(trials))
    fit(pack, features, np.arange(16), seed=0)
    for trial in range(trials):
        assert float(pack.method(trial).scale) == 3.0
        assert not pack.method(trial).scale.requires_grad


def test_features_in_memory_keep_global_embeddings_where_there_are_some() -> None:
    features, _ = scene()
    rows = np.array([3, 1])
    with pytest.raises(ValueError, match="without global embeddings"):
        read_batch(features, rows, {"embedding"})
    known = torch.randn(16, 6)
    local = features.local(np.arange(16))
    source = MemoryFeatures(local, features.labels, grid=(2, 2), embeddings=known)
    copy = MemoryFeatures.copy_of(source, torch.device("cpu"))
    for one in (source, copy):
        assert torch.equal(read_batch(one, rows, {"embedding"}).embedding, known[[3, 1]])
