"""Heads on frozen features: logistic regression at its optimum, a cache, thresholds, pooling."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from dclip.fitting import logistic
from dclip.fitting.batches import Batch, MemoryFeatures
from dclip.fitting.fit import fit, scores_of
from dclip.fitting.logistic import fit_logistic
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.logits import pair_logits
from dclip.losses import asymmetric_loss
from dclip.methods import logistic_probe, tip_adapter
from dclip.methods.calibrated import Calibrated
from dclip.methods.head_settings import (
    CalibratedSettings,
    LogisticProbeSettings,
    TipAdapterSettings,
    ZeroShotPooledSettings,
)
from dclip.methods.logistic_probe import LogisticProbe
from dclip.methods.method import Method, Task, initial
from dclip.methods.settings import of_preset
from dclip.methods.tip_adapter import TipAdapter
from dclip.methods.zero_shot import ZeroShotPooled
from dclip.metrics import mean_average_precision

NAMES = ("cat", "dog", "fish")
NO_LABELS = torch.empty(0, 0, dtype=torch.int8)


def task(dim: int = 8) -> Task:
    random = torch.Generator().manual_seed(1)
    return Task.of_features(
        NAMES, torch.randn(6, dim, generator=random), torch.randn(3, dim, generator=random)
    )


def images(count: int = 40, dim: int = 8) -> MemoryFeatures:
    random = torch.Generator().manual_seed(2)
    local = torch.randn(count, 6, dim, generator=random) + 1
    embeddings = torch.randn(count, dim, generator=random)
    labels = (torch.rand(count, 3, generator=random) < 0.4).to(torch.int8)
    return MemoryFeatures(local, labels, grid=(2, 3), embeddings=embeddings)


def noisy(images: int = 60, dim: int = 7, classes: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    vectors = torch.randn(images, dim, generator=random).double() * torch.logspace(0, -2, dim) + 1
    labels = (vectors @ torch.randn(dim, classes, generator=random).double() > 0).long()
    return vectors, labels ^ (torch.rand(images, classes, generator=random) < 0.2).long()


def objective_gradient(vectors: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, c: float):
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    logits = vectors @ weight.T + bias
    losses = F.binary_cross_entropy_with_logits(
        logits, (labels == 1).double(), (labels >= 0).double(), reduction="sum"
    )
    (c * losses + weight.square().sum() / 2).backward()
    return torch.cat([weight.grad, bias.grad[:, None]], 1).norm(dim=1)


# ---------------------------------------------------------------------------------------------
# Logistic regression
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0, 1e4])
def test_the_optimum_is_that_of_scikit_learn(c: float, device: torch.device) -> None:
    vectors, labels = noisy()
    labels[::7, 1] = -1
    fitted = fit_logistic(vectors.to(device), labels.to(device), c=c)
    assert fitted.gradient_norm <= 1e-5
    weight, bias = fitted.weight.cpu(), fitted.bias.cpu()
    assert objective_gradient(vectors, labels, weight, bias, c).max() <= 1.1e-5
    for column in range(labels.shape[1]):
        known = labels[:, column] >= 0
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=100_000, solver="newton-cholesky")
        theirs.fit(vectors[known].numpy(), labels[known, column].numpy())
        torch.testing.assert_close(
            weight[column], torch.from_numpy(theirs.coef_[0]), rtol=1e-4, atol=1e-4
        )
        assert bias[column].item() == pytest.approx(theirs.intercept_[0], rel=1e-4, abs=1e-4)


def test_two_opposite_images_by_hand() -> None:
    """By symmetry b = 0, and w = 2 C (1 - sigmoid(w)) has one solution."""
    fitted = fit_logistic(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1], [0]]), c=2.0)
    weight = fitted.weight.item()
    assert weight == pytest.approx(4 / (1 + math.exp(weight)), abs=1e-5)
    assert fitted.bias.item() == pytest.approx(0, abs=1e-5)


def test_classes_whose_labels_are_alike_keep_a_finite_bias() -> None:
    labels = torch.tensor([[1, 0, -1, 1], [1, 0, -1, -1], [1, 0, -1, 0]])
    vectors = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.5]])
    fitted = fit_logistic(vectors, labels, c=10.0)
    assert fitted.weight[:3].abs().max() == 0
    probabilities = fitted.bias.sigmoid()[:3]
    torch.testing.assert_close(probabilities, torch.tensor([4 / 5, 1 / 5, 1 / 2]).double())
    assert fitted.weight[3].abs().max() > 0
    alone = fit_logistic(vectors[:1], torch.tensor([[1]]), c=10.0)
    assert (alone.gradient_norm, alone.steps) == (0, 0)
    assert alone.bias.sigmoid().item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_separable_data_with_a_large_c_converges(shift: float) -> None:
    plain, _ = noisy(30, 40)
    vectors, labels = plain + shift, (plain[:, :2] > 1).long()
    fitted = fit_logistic(vectors, labels, c=1e6)
    assert fitted.gradient_norm <= 1e-5
    found = vectors @ fitted.weight.T + fitted.bias
    assert torch.equal(found > 0, labels == 1)


@given(st.permutations(range(4)), st.integers(0, 1000))
def test_classes_are_independent_and_order_does_not_matter(order: list[int], seed: int) -> None:
    vectors, labels = noisy()
    rows = np.random.default_rng(seed).permutation(len(vectors))
    whole = fit_logistic(vectors, labels, c=3.0, tolerance=1e-9)
    other = fit_logistic(vectors[rows], labels[rows][:, order[:2]], c=3.0, tolerance=1e-9)
    torch.testing.assert_close(other.weight, whole.weight[order[:2]], rtol=1e-7, atol=1e-7)


def test_images_that_are_alike_leave_the_share_of_each_class() -> None:
    fitted = fit_logistic(torch.full((4, 3), 0.3), torch.tensor([[1], [0], [0], [0]]), c=5.0)
    assert fitted.weight.abs().max() == 0
    assert fitted.bias.sigmoid().item() == pytest.approx(1 / 4, abs=1e-6)


def test_many_classes_are_solved_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = noisy()
    together = fit_logistic(vectors, labels, c=3.0, tolerance=1e-9)
    monkeypatch.setattr(logistic, "_MOST_NUMBERS", 1)
    alone = fit_logistic(vectors, labels, c=3.0, tolerance=1e-9)
    torch.testing.assert_close(alone.weight, together.weight, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(alone.bias, together.bias, rtol=1e-7, atol=1e-7)


def test_what_cannot_be_regressed_is_refused() -> None:
    vectors, labels = noisy()
    with pytest.raises(ValueError, match="not finite"):
        fit_logistic(vectors / 0, labels, c=1.0)
    with pytest.raises(ValueError, match="c must be above 0, got 0"):
        fit_logistic(vectors, labels, c=0)
    with pytest.raises(ValueError, match=r"got \[0, 7\]"):
        fit_logistic(vectors[:0], labels[:0], c=1.0)


@pytest.mark.parametrize("of", ["mean", "embedding"])
def test_the_probe_regresses_unit_vectors_and_says_how_far_it_came(of: str) -> None:
    source, rows = images(), np.arange(30)
    probe = LogisticProbe(LogisticProbeSettings(of=of, c=3.0), task())
    assert sum(weight.numel() for weight in probe.parameters()) == 3 * (8 + 1)
    said = probe.fit(source, rows, seed=0)
    assert 0 < said["gradient_norm"] <= 1e-5
    vectors = source.embeddings(rows) if of == "embedding" else source.local(rows).mean(1)
    vectors = F.normalize(vectors, dim=-1)
    expected = fit_logistic(vectors, source.labels[rows], c=3.0)
    kept = probe.weight.detach(), probe.bias.detach()
    there = objective_gradient(vectors.double(), source.labels[rows], *kept, 3.0)
    assert there.max() == pytest.approx(said["gradient_norm"], rel=1e-3)
    scores = scores_of(probe, source, rows)
    logits = vectors.double() @ expected.weight.T + expected.bias
    torch.testing.assert_close(scores.double(), logits.sigmoid(), rtol=1e-5, atol=1e-6)


def test_a_search_that_is_cut_short_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*arguments: Tensor, **settings: float):
        return fit_logistic(*arguments, **settings, most_steps=1)

    monkeypatch.setattr(logistic_probe, "fit_logistic", short)
    probe = LogisticProbe(LogisticProbeSettings(c=1000.0), task())
    with caplog.at_level(logging.WARNING):
        said = probe.fit(images(), np.arange(40), seed=0)
    assert said["steps"] == 1
    assert said["gradient_norm"] > 1e-5
    assert "short of its optimum" in caplog.text
    assert "smaller c than 1000" in caplog.text


# ---------------------------------------------------------------------------------------------
# Tip-Adapter
# ---------------------------------------------------------------------------------------------


def test_the_cache_by_hand() -> None:
    """Two cached images, at right angles; the one looked at is the first of them."""
    pairs = torch.eye(6, 8)
    method = TipAdapter(TipAdapterSettings(alpha=10.0, beta=2.0), Task.of_features(NAMES, pairs))
    local = torch.eye(8)[6:, None]
    labels = torch.tensor([[1, 0, 0], [0, -1, 1]])
    said = method.fit(MemoryFeatures(local, labels, grid=(1, 1)), np.arange(2), seed=0)
    assert said == {"cached_images": 2, "cache_megabytes": 2 * (2 * 8 + 3) / 1e6}
    scores = method.scores(Batch(5 * local[:1], NO_LABELS))
    far = math.exp(-2)
    expected = [10 / (1 + far), 0.0, 10 * far / (1 + far)]  # the second is unknown of the far one
    torch.testing.assert_close(scores, torch.tensor([expected]))


def test_without_a_cache_it_is_zero_shot_and_a_sharp_one_is_the_nearest_image() -> None:
    source, rows, own = images(), np.arange(40), task()
    frozen = TipAdapter(TipAdapterSettings(alpha=0.0), own)
    frozen.fit(source, rows, seed=0)
    mean = F.normalize(source.local(rows).mean(1), dim=-1)
    cosines = 100 * mean @ F.normalize(own.texts.features, dim=-1).T
    torch.testing.assert_close(scores_of(frozen, source, rows), cosines, rtol=1e-4, atol=1e-4)
    spread = MemoryFeatures(10 * torch.eye(40)[:, None], source.labels, grid=(1, 1))
    sharp = TipAdapter(TipAdapterSettings(beta=100.0, alpha=1.0), task(40))
    sharp.fit(spread, rows, seed=0)
    shares = sharp.shares(torch.eye(40))
    torch.testing.assert_close(shares, source.labels.float(), rtol=0, atol=1e-6)


def test_unknown_labels_are_no_absence() -> None:
    source = images()
    hidden = source.labels.clone()
    hidden[:, 0] = torch.where(hidden[:, 0] == 0, -1, hidden[:, 0])
    hidden[:, 1] = -1
    method = TipAdapter(TipAdapterSettings(), task())
    method.fit(MemoryFeatures(source.local(np.arange(40)), hidden, grid=(2, 3)), np.arange(40),
               seed=0)  # fmt: skip
    shares = method.shares(torch.eye(8))
    assert (shares[:, 0] == 1).all()
    assert (shares[:, 1] == 0).all()


def test_a_cache_is_bounded_and_shots_make_it_small(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, rows = images(), np.arange(40)
    method = TipAdapter(TipAdapterSettings(shots=2), task())
    assert method.fit(source, rows, seed=0)["cached_images"] <= 6
    assert ((method.labels == 1).sum(0) >= 2).all()
    kept = method.vectors
    assert method.fit(source, rows, seed=0)
    assert torch.equal(kept, method.vectors)
    monkeypatch.setattr(tip_adapter, "_MANY_BYTES", 100)
    with caplog.at_level(logging.WARNING):
        TipAdapter(TipAdapterSettings(), task()).fit(source, rows, seed=0)
    assert "a cache of 40 images takes 0 MB, in memory and in the checkpoint" in caplog.text
    monkeypatch.setattr(tip_adapter, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="is the most; give shots"):
        TipAdapter(TipAdapterSettings(), task()).fit(source, rows, seed=0)


# ---------------------------------------------------------------------------------------------
# Calibrated prompts, and pooling without training
# ---------------------------------------------------------------------------------------------


def test_two_numbers_a_class_are_trained_on_the_pooled_cosine() -> None:
    names = [str(number) for number in range(80)]
    many = Calibrated(CalibratedSettings(), Task.placeholder(names, 512))
    assert sum(weight.numel() for weight in many.parameters()) == 2 * 80
    own = task()
    method = Calibrated(CalibratedSettings(gamma_neg=1.0, clip=0.1), own)
    with torch.no_grad():
        method.log_scale.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
        method.threshold.copy_(torch.tensor([0.1, 0.0, -0.1]))
    local, labels = torch.randn(5, 6, 8), torch.tensor([[1, 0, -1]]).expand(5, 3)
    pooled = pair_logits(local, own.pairs)[:, 1] / 100
    expected = torch.tensor([1.0, 2.0, 3.0]) * (pooled - torch.tensor([0.1, 0.0, -0.1]))
    batch = Batch(local, labels, known=10)
    torch.testing.assert_close(method.scores(batch), expected.sigmoid())
    loss = asymmetric_loss(
        torch.stack([0 * expected, expected], 1), labels, gamma_neg=1.0, clip=0.1
    )
    torch.testing.assert_close(method.losses(batch)["loss"], loss / 10)


@pytest.mark.parametrize("asks", ["presence", "pair"])
def test_training_it_finds_thresholds_and_leaves_the_ranking(asks: str) -> None:
    own = task()
    random = torch.Generator().manual_seed(4)
    local = torch.randn(64, 6, 8, generator=random)
    frozen = ZeroShotPooled(ZeroShotPooledSettings(asks=asks), Task.of_features(NAMES, own.pairs))
    said = frozen.scores(Batch(local, NO_LABELS)) / 100
    begins = said.quantile(0.8, dim=0)
    source = MemoryFeatures(local, (said > begins).long(), grid=(2, 3))
    loop = of_preset(CalibratedSettings, "robust")[0].model_copy(update={"epochs": 60})
    settings = CalibratedSettings(asks=asks, gamma_neg=0.0, gamma_pos=0.0, clip=0.0)
    pack = Pack(Calibrated, [settings], loop, own, seeds=[0])
    start = scores_of(pack.method(), source, np.arange(64))
    fit(pack, source, np.arange(64), seed=0)
    method = pack.method()
    end = scores_of(method, source, np.arange(64))
    assert mean_average_precision(end, source.labels) == 1.0
    batch = Batch(local, NO_LABELS)
    assert torch.equal(method.logits(batch).argsort(0), frozen.scores(batch).argsort(0))
    right = [((scores > 0.5) == (source.labels == 1)).float().mean() for scores in (start, end)]
    assert right[1] > 0.9 > right[0]
    assert method.watch()["threshold"] == pytest.approx(begins.mean().item(), abs=0.1)


def test_pooling_without_training_is_that_of_dclip_on_clips_own_texts() -> None:
    own, local = task(), torch.randn(4, 6, 8)
    plain = Task.of_features(NAMES, own.pairs)
    batch = Batch(local, NO_LABELS)
    absent, present = pair_logits(local, own.pairs).unbind(1)
    alone = ZeroShotPooled(ZeroShotPooledSettings(), plain).scores(batch)
    torch.testing.assert_close(alone, present)
    pair = ZeroShotPooled(ZeroShotPooledSettings(asks="pair"), own).scores(batch)
    torch.testing.assert_close(pair, present - absent)


# ---------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------

HEADS = [LogisticProbe, TipAdapter, Calibrated]


def trained(kind: type[Method]) -> Method:
    own = task()
    if kind.Settings.trained_by == "loop":
        pack = Pack(kind, [kind.Settings()], Loop(epochs=2, lr=0.1), own, seeds=[0])
        fit(pack, images(), np.arange(40), seed=0)
        return pack.method()
    method = initial(kind, kind.Settings(), own, seed=0)
    method.fit(images(), np.arange(40), seed=0)
    return method.eval()


@pytest.mark.parametrize("kind", HEADS)
def test_some_of_its_classes_are_scored_as_among_all_and_others_are_refused(
    kind: type[Method],
) -> None:
    method, own = trained(kind), task()
    batch = Batch(torch.randn(4, 6, 8), NO_LABELS)
    columns = [2, 0]
    some = Task.of_features(
        [NAMES[column] for column in columns],
        own.pairs[[2, 0, 5, 3]],
        own.texts.features[columns],
    )
    fewer = method.for_classes(some)
    torch.testing.assert_close(fewer.scores(batch), method.scores(batch)[:, columns])
    if kind.scores_locations:
        torch.testing.assert_close(
            fewer.location_logits(batch.local), method.location_logits(batch.local)[:, columns]
        )
    strange = Task.of_features(["cat", "unicorn"], own.pairs[:4])
    with pytest.raises(ValueError, match="'unicorn' is none of them"):
        method.for_classes(strange)


@pytest.mark.parametrize("kind", [LogisticProbe, Calibrated])
def test_an_image_of_one_location_is_scored_as_that_location(kind: type[Method]) -> None:
    method = trained(kind)
    local = torch.randn(4, 1, 8)
    logits = method.location_logits(local)[..., 0]
    torch.testing.assert_close(method.scores(Batch(local, NO_LABELS)), logits.sigmoid())


@pytest.mark.parametrize("kind", [LogisticProbe, TipAdapter])
def test_nothing_to_fit_is_told(kind: type[Method]) -> None:
    method = kind(kind.Settings(), task())
    with pytest.raises(ValueError, match="no images to train on"):
        method.fit(images(), np.arange(0), seed=0)
