"""Packs of any method: buffers that training moves, and parameters that it leaves alone."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.fitting.batches import Batch, MemoryFeatures, read_batch
from dclip.fitting.fit import fit, step_seed
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


class Forgetful(Normalised):
    """The same on features of which every step drops half."""

    def __init__(self, settings: NormalisedSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.dropout = nn.Dropout(0.5)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        kept = batch._replace(local=self.dropout(batch.local))
        noise = torch.rand_like(self.mean).mean()
        return {"loss": super().losses(kept)["loss"] * (1 + noise)}


def scene() -> tuple[MemoryFeatures, Task]:
    generator = torch.Generator().manual_seed(0)
    local = 2 + torch.randn(16, 4, 6, generator=generator)
    labels = (torch.rand(16, 3, generator=generator) < 0.5).int()
    task = Task.of_features(["a", "b", "c"], torch.randn(6, 6, generator=generator))
    return MemoryFeatures(local, labels, grid=(2, 2)), task


@pytest.mark.parametrize("members", [1, 2])
def test_a_kept_state_holds_what_training_moves_besides_weights(members: int) -> None:
    features, task = scene()
    settings, loop = [NormalisedSettings()] * members, Loop(epochs=2, batch_size=8)
    pack = Pack(Normalised, settings, loop, task, seeds=range(members))
    rows = np.arange(16)
    fit(pack, features, rows, seed=0)
    again = Pack(Normalised, settings, loop, task, seeds=[9] * members, fresh=False)
    again.load_state_tensors(pack.state_tensors())
    for member in range(members):
        before, after = (one.method(member).state_dict() for one in (pack, again))
        assert before["norm.running_mean"].abs().max() > 0.1
        assert before["mean"].abs().max() > 0
        for name, value in before.items():
            assert torch.equal(after[name], value), name
    assert torch.equal(again.predict(features, rows), pack.predict(features, rows))


@pytest.mark.parametrize("members", [1, 2])
def test_what_a_method_freezes_is_not_trained(members: int) -> None:
    features, task = scene()
    loop = Loop(epochs=2, batch_size=8, weight_decay=0.5, lr=0.1)
    pack = Pack(Normalised, [NormalisedSettings()] * members, loop, task, seeds=range(members))
    fit(pack, features, np.arange(16), seed=0)
    for member in range(members):
        assert float(pack.method(member).scale) == 3.0
        assert not pack.method(member).scale.requires_grad


class KilledError(Exception):
    """In the middle of an epoch."""


@pytest.mark.parametrize("members", [1, 2])
def test_a_method_that_draws_goes_on_as_if_it_had_not_been_stopped(
    members: int, device: torch.device
) -> None:
    features, task = scene()
    loop, rows = Loop(epochs=3, batch_size=4), np.arange(16)

    def begun() -> Pack:
        own = [NormalisedSettings()] * members
        return Pack(Forgetful, own, loop, task, seeds=range(members), device=device)

    whole, stopped, again = begun(), begun(), begun()
    fit(whole, features, rows, seed=5)
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:  # of three an epoch that are told: within the second
            raise KilledError

    with pytest.raises(KilledError):
        fit(stopped, features, rows, seed=5, on_step=stop)
    assert (stopped.epoch, stopped.step) == (1, 2)
    again.load_state_tensors(stopped.state_tensors())
    torch.rand(7)  # another process has drawn otherwise
    before = torch.get_rng_state()
    fit(again, features, rows, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for member in range(members):
        for name, value in whole.method(member).state_dict().items():
            assert torch.equal(again.method(member).state_dict()[name], value), name
    other = begun()
    fit(other, features, rows, seed=6)
    assert not torch.equal(other.method().output.weight, whole.method().output.weight)


def test_trainings_that_draw_end_together_as_each_would_alone() -> None:
    features, task = scene()
    loop, rows = Loop(epochs=2, batch_size=4), np.arange(16)
    settings = NormalisedSettings()
    together = Pack(Forgetful, [settings] * 3, loop, task, seeds=[0, 1, 2])
    fit(together, features, rows, seed=5)
    for seed in range(3):
        alone = Pack(Forgetful, [settings], loop, task, seeds=[seed])
        fit(alone, features, rows, seed=5)
        torch.testing.assert_close(together.method(seed).state_dict(), alone.method().state_dict())


def test_steps_and_workers_draw_differently() -> None:
    seeds = {step_seed(0, epoch, step, rank)
             for epoch in range(3) for step in range(9) for rank in range(2)}  # fmt: skip
    assert len(seeds) == 54
    assert step_seed(1, 0, 0) != step_seed(0, 0, 0)


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
