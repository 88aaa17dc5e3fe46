"""Scores out of fold: of what was trained on the others, copies together, probabilities again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dclip.fitting.batches import MemoryFeatures
from dclip.fitting.logistic import fit_logistic
from dclip.fitting.loop import Loop
from dclip.fitting.out_of_fold import draw_folds, out_of_fold, platt_scaled, without
from dclip.methods.method import Task
from dclip.methods.registry import find_method, find_settings
from dclip.methods.settings import of_preset


@given(seed=st.integers(0, 500), folds=st.integers(2, 7))
def test_folds_are_alike_in_size_and_copies_share_one(seed: int, folds: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 60, 100)
    fold = draw_folds(groups, folds, seed=seed)
    assert set(fold.tolist()) == set(range(folds))
    for group in np.unique(groups):
        assert len(set(fold[groups == group].tolist())) == 1
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= np.bincount(groups).max()
    assert (fold == draw_folds(groups, folds, seed=seed)).all()


def test_one_large_group_leaves_no_fold_empty() -> None:
    groups = np.array([0] * 90 + [1, 2])
    assert all(set(draw_folds(groups, 3, seed=seed)) == {0, 1, 2} for seed in range(9))


def test_as_many_folds_as_pictures_at_most() -> None:
    with pytest.raises(ValueError, match="2 images that are no copies make no 3 folds"):
        draw_folds(np.array([1, 1, 4]), 3, seed=0)


def world() -> tuple[MemoryFeatures, Task]:
    local = torch.randn(60, 4, 8)
    labels = (local.mean(1)[:, :3] + 0.2 * torch.randn(60, 3) > 0).to(torch.int8)
    labels[::7, 1] = -1
    return MemoryFeatures(local, labels, grid=(2, 2)), Task.of_features(
        ("a", "b", "c"), torch.randn(6, 8)
    )


def test_each_image_is_scored_by_a_fit_to_the_other_folds() -> None:
    features, task = world()
    folds = draw_folds(np.arange(60), 3, seed=1)
    _, settings = of_preset(find_settings("logistic_probe"), "robust")
    done: list[int] = []
    scores = out_of_fold(
        find_method("logistic_probe"), settings, Loop(), task, features, folds, done=done.append
    )
    vectors = F.normalize(features.local(np.arange(60)).mean(1), dim=-1)
    for fold in range(3):
        others, own = torch.from_numpy(folds != fold), torch.from_numpy(folds == fold)
        fitted = fit_logistic(vectors[others], features.labels[others], c=settings.c)
        expected = torch.sigmoid(vectors[own].double() @ fitted.weight.mT + fitted.bias)
        torch.testing.assert_close(scores[own], expected.float())
    assert sum(done) == 60


def test_a_label_of_its_own_does_not_move_a_score() -> None:
    features, task = world()
    folds = draw_folds(np.arange(60), 4, seed=0)
    loop, settings = of_preset(find_settings("dclip"), "anchored")
    loop = loop.model_copy(update={"epochs": 2, "warmup_epochs": 1})
    kind, labels = find_method("dclip"), features.labels.clone()
    before = out_of_fold(kind, settings, loop, task, features, folds)
    row = int(np.flatnonzero(folds == 2)[0])
    labels[row] = 1 - labels[row].abs()
    features.labels = labels
    after = out_of_fold(kind, settings, loop, task, features, folds)
    same = torch.from_numpy(folds == 2)
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


def test_scaled_scores_are_calibrated_whatever_their_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 2, generator=generator)
    labels = (torch.rand(4000, 2, generator=generator) < logits.sigmoid()).to(torch.int8)
    scaled = platt_scaled(7 * logits + 100, labels, are_probabilities=False)
    torch.testing.assert_close(scaled, logits.double().sigmoid(), atol=0.05, rtol=0)
    squeezed = (0.2 * logits - 2).sigmoid()
    again = platt_scaled(squeezed, labels, are_probabilities=True)
    torch.testing.assert_close(again, scaled, atol=1e-3, rtol=0)
    assert (
        platt_scaled(torch.full((5, 1), 0.5), labels[:5, :1], are_probabilities=True)
        .isfinite()
        .all()
    )


def test_doubted_labels_are_unknown_and_the_others_as_they_were() -> None:
    labels = torch.ones(3, 2, dtype=torch.int8)
    left = without(labels, np.array([0, 2]), np.array([1, 0]))
    assert left.tolist() == [[1, -1], [1, 1], [-1, 1]]
    assert labels.tolist() == [[1, 1]] * 3
