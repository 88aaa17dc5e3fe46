"""Training: the schedule by hand, exact resumption, shares of a batch, a problem it must solve."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dclip.recipe import Recipe
from dclip.training import (
    DivergenceError,
    EpochReport,
    build_model,
    build_optimizer,
    fit,
    hold_out,
    learning_rate,
    load_state_tensors,
    objective,
    predict,
    state_tensors,
)

CLASSES, DIM, LOCATIONS = 4, 16, 6


class Cache:
    """Scenes of two locations with an object each; an object is its class direction plus noise."""

    def __init__(self, images: int, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        directions = torch.eye(DIM)[:CLASSES] * 3
        self.labels = torch.zeros(images, CLASSES, dtype=torch.uint8)
        self.features = torch.randn(images, LOCATIONS, DIM, generator=random) * 0.3
        for image in range(images):
            for location in range(2):
                kind = int(torch.randint(CLASSES, (1,), generator=random))
                self.labels[image, kind] = 1
                self.features[image, location] += directions[kind]

    def local(self, rows: np.ndarray) -> Tensor:
        return self.features[torch.as_tensor(rows)].half()


def texts() -> Tensor:
    """Prompt pairs that mostly agree, as CLIP's do: across classes, and within each pair."""
    random = torch.Generator().manual_seed(5)
    positive = torch.ones(CLASSES, DIM) + 0.5 * torch.randn(CLASSES, DIM, generator=random)
    negative = positive + 0.1 * torch.randn(CLASSES, DIM, generator=random)
    return torch.cat([negative, positive])


def train(recipe: Recipe, cache: Cache, **options) -> tuple[torch.nn.Module, list[EpochReport]]:  # type: ignore[no-untyped-def]
    model = build_model(recipe, DIM, seed=1)
    optimizer = build_optimizer(model, recipe)
    reports: list[EpochReport] = []
    rows = np.arange(len(cache.labels))
    fit(model, optimizer, cache, rows, texts(), recipe, seed=3, on_epoch=reports.append, **options)
    return model, reports


def test_the_schedule_is_a_constant_warm_up_and_a_cosine_counted_from_its_end() -> None:
    recipe = Recipe(epochs=4, warmup_epochs=1, lr=0.1, warmup_lr=0.001)
    # cos(0) = 1; cos(pi/4) = sqrt(1/2); cos(pi/2) = 0
    expected = [0.001, 0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05]
    assert [learning_rate(recipe, epoch) for epoch in range(4)] == pytest.approx(expected)


def test_author_is_the_published_recipe() -> None:
    recipe = Recipe(preset="author")
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        "sgd", 0.002, 0.9, 5e-4,
    )  # fmt: skip
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs, recipe.warmup_lr) == (
        50, 32, 1, 1e-5,
    )  # fmt: skip
    assert (recipe.asl_weight, recipe.asl_reduction) == (0.05, "sum")
    assert (recipe.gamma_neg, recipe.gamma_pos, recipe.clip) == (2, 1, 0.05)
    assert (recipe.mfi_weight, recipe.redundancy_weight) == (7e-5, 0.2)
    assert (recipe.mfi_scope, recipe.mfi_gram, recipe.mfi_reduction) == ("both", "feature", "sum")


def test_it_learns_scenes_that_frozen_features_confuse() -> None:
    cache = Cache(256)
    recipe = Recipe(epochs=20, lr=1e-2, batch_size=16, hidden_dim=32, output_dim=16, mfi_weight=0.3)
    model, reports = train(recipe, cache, val_rows=np.arange(64))
    assert reports[-1].val_map > 0.95
    assert reports[-1].val_map > reports[0].val_map
    assert reports[-1].loss < reports[0].loss
    assert reports[-1].inter_class_cosine < 0.5
    held_out = Cache(64, seed=9)
    scores = predict(model, held_out, np.arange(64), texts())  # type: ignore[arg-type]
    assert ((scores > 0.5) == held_out.labels.bool()).float().mean() > 0.9


@pytest.mark.parametrize("label", [0, -1])
def test_held_out_images_without_a_class_give_no_map(label: int) -> None:
    cache = Cache(16)
    cache.labels[:4] = label
    _, (report,) = train(Recipe(epochs=1, output_dim=4), cache, val_rows=np.arange(4))
    assert math.isnan(report.val_map)


@pytest.mark.parametrize("preset", ["author", "robust"])
def test_going_on_from_a_saved_state_ends_with_the_same_weights(preset: str) -> None:
    cache = Cache(48)
    recipe = Recipe.model_validate({"preset": preset, "epochs": 4, "output_dim": 8})
    straight, _ = train(recipe, cache)
    saved: list[dict[str, Tensor]] = []

    model = build_model(recipe, DIM, seed=1)
    optimizer = build_optimizer(model, recipe)

    def keep(report: EpochReport) -> None:
        if report.epoch == 2:
            saved.append(state_tensors(model, optimizer))

    rows = np.arange(48)
    fit(model, optimizer, cache, rows, texts(), recipe, seed=3, on_epoch=keep)
    resumed = build_model(recipe, DIM, seed=99)
    optimizer = build_optimizer(resumed, recipe)
    load_state_tensors(resumed, optimizer, saved[0])
    fit(resumed, optimizer, cache, rows, texts(), recipe, seed=3, first_epoch=2)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_averaged_gradients_of_uneven_shares_are_the_gradient_of_the_batch(reduction: str) -> None:
    cache = Cache(7)
    labels = cache.labels.long()
    labels[2, 1] = -1  # unknown labels count for the mean, too
    recipe = Recipe.model_validate({"asl_reduction": reduction, "mfi_weight": 0.3})
    model = build_model(recipe, DIM, seed=0).double()
    known = int((labels >= 0).sum())

    def gradients(rows: list[int], share: int) -> list[Tensor]:
        output = model(cache.local(np.array(rows)).double(), texts().double())
        loss = objective(output, labels[rows], recipe, known=known, share=share).total
        return list(torch.autograd.grad(loss, list(model.parameters())))

    whole = gradients(list(range(7)), 1)
    shares = [gradients(list(range(rank, 7, 2)), 2) for rank in range(2)]
    for one, two, expected in zip(*shares, whole, strict=True):
        torch.testing.assert_close((one + two) / 2, expected)


def test_without_mfi_only_asl_moves_the_weights() -> None:
    recipe = Recipe(mfi_weight=0.0)
    cache = Cache(4)
    model = build_model(recipe, DIM, seed=0)
    losses = objective(model(cache.local(np.arange(4)).float(), texts()), cache.labels, recipe)
    assert losses.total.item() == losses.asl.item()
    assert losses.mfi.item() > 0


def test_a_loss_that_leaves_the_numbers_stops_with_a_remedy() -> None:
    cache = Cache(32)
    cache.features[3, 0, 0] = float("inf")
    with pytest.raises(DivergenceError, match="lower lr or mfi_weight") as caught:
        train(Recipe(epochs=2), cache)
    assert "epoch 1" in str(caught.value)


def test_a_recipe_that_must_diverge_is_refused_before_training() -> None:
    recipe = Recipe(preset="author", mfi_weight=10.0)
    with pytest.raises(ValueError, match="alpha"):
        train(recipe, Cache(8))


def test_no_images_is_an_error() -> None:
    recipe = Recipe()
    model = build_model(recipe, DIM, seed=0)
    with pytest.raises(ValueError, match="no images"):
        fit(
            model, build_optimizer(model, recipe), Cache(1), np.arange(0), texts(), recipe, seed=0
        )  # fmt: skip


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one = build_model(Recipe(), DIM, seed=4).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    two = build_model(Recipe(), DIM, seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@given(st.integers(1, 200), st.floats(0, 0.9), st.integers(0, 5))
def test_held_out_rows_and_training_rows_part_the_images(
    images: int, fraction: float, seed: int
) -> None:
    rows, held = hold_out(images, fraction, seed=seed)
    assert sorted([*rows.tolist(), *held.tolist()]) == list(range(images))
    assert len(held) == round(images * fraction)
    again, _ = hold_out(images, fraction, seed=seed)
    assert np.array_equal(rows, again)
