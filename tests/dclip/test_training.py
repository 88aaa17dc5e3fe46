"""Training: the schedule by hand, exact resumption, shares of a batch, a problem it must solve."""

import math
from random import Random

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
    epoch_batches,
    fit,
    hold_out,
    learning_rate,
    load_state_tensors,
    location_boxes,
    objective,
    predict,
    state_tensors,
)

CLASSES, DIM, GRID = 4, 16, (2, 3)
LOCATIONS = GRID[0] * GRID[1]


class Cache:
    """Scenes of two locations with an object each; an object is its class direction plus noise.

    View v of an image is the clean one, the first, plus v times noise of its own.
    """

    grid = GRID

    def __init__(
        self, images: int, seed: int = 0, *, views: int = 1, noise: float = 0.0, tokens: int = 0
    ) -> None:
        self.views = views
        random = torch.Generator().manual_seed(seed)
        directions = torch.eye(DIM)[:CLASSES] * 3
        self.labels = torch.zeros(images, CLASSES, dtype=torch.uint8)
        self.features = torch.randn(images, LOCATIONS, DIM, generator=random) * 0.3
        for image in range(images):
            for location in range(2):
                kind = int(torch.randint(CLASSES, (1,), generator=random))
                self.labels[image, kind] = 1
                self.features[image, location] += directions[kind]
        self.noise = noise * torch.randn(views, *self.features.shape, generator=random)
        self.noise[0] = 0
        if tokens:
            means = self.features.mean(1, keepdim=True).expand(-1, tokens, -1)
            self.features = torch.cat([means, self.features], 1)
            self.noise = torch.nn.functional.pad(self.noise, (0, 0, tokens, 0))

    def local(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        chosen = np.zeros_like(rows) if views is None else views
        noise = self.noise[torch.as_tensor(chosen), torch.as_tensor(rows)]
        return (self.features[torch.as_tensor(rows)] + noise).half()


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


@pytest.mark.parametrize(
    ("settings", "views"),
    [({"preset": "author"}, 1), ({"preset": "robust"}, 1), ({"feature_cutout": 0.7}, 3)],
)
def test_going_on_from_a_saved_state_ends_with_the_same_weights(
    settings: dict[str, object], views: int
) -> None:
    cache = Cache(48, views=views, noise=0.1)
    recipe = Recipe.model_validate({**settings, "epochs": 4, "output_dim": 8})
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


# ---------------------------------------------------------------------------------------------
# Views and boxes
# ---------------------------------------------------------------------------------------------


class NumberedViews:
    """Every location holds the row of the image and the view it is of."""

    grid = (4, 5)

    def __init__(self, images: int, views: int, locations: int = 21) -> None:
        self.labels = torch.zeros(images, 2, dtype=torch.int8)
        self.views, self.locations = views, locations

    def local(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        chosen = np.zeros_like(rows) if views is None else views
        numbers = torch.tensor(np.stack([rows, chosen], 1), dtype=torch.float16)
        return numbers[:, None].expand(-1, self.locations, -1)


def drawn(
    features: NumberedViews, recipe: Recipe, *, rows: np.ndarray | None = None, workers: int = 1,
    **key: int,
) -> dict[int, tuple[int, list[bool] | None]]:  # fmt: skip
    """View and dropped locations of each row, over all workers."""
    found: dict[int, tuple[int, list[bool] | None]] = {}
    rows = np.arange(len(features.labels)) if rows is None else rows
    for rank in range(workers):
        given = epoch_batches(features, rows, recipe, rank=rank, workers=workers, **key)
        for batch in given:
            for number, (row, view) in enumerate(batch.local[:, 0].int().tolist()):
                assert row not in found
                dropped = None if batch.dropped is None else batch.dropped[number].tolist()
                found[row] = view, dropped
    assert sorted(found) == sorted(rows.tolist())
    return found


def test_each_epoch_draws_every_view_equally_often() -> None:
    features = NumberedViews(2000, views=4)
    epochs = [drawn(features, Recipe(), seed=0, epoch=epoch) for epoch in range(3)]
    views = np.array([[epoch[row][0] for row in range(2000)] for epoch in epochs])
    for counts in (np.bincount(line, minlength=4) for line in views):
        # 500 each, standard deviation sqrt(2000 * 1/4 * 3/4) = 19.4
        assert np.abs(counts - 500).max() < 5 * 19.4
    # two epochs agree by chance in a quarter of the rows
    assert (views[0] == views[1]).mean() == pytest.approx(0.25, abs=0.05)
    assert epochs[0] != drawn(features, Recipe(), seed=1, epoch=0)


def test_boxes_are_uniform_and_change_with_the_epoch() -> None:
    features = NumberedViews(2000, views=1)
    recipe = Recipe(feature_cutout=0.5)
    epochs = [drawn(features, recipe, seed=0, epoch=epoch) for epoch in range(2)]
    boxes = np.array([[epoch[row][1] for row in range(2000)] for epoch in epochs])
    # boxes of 2 x 2 in a grid of 4 x 5, from the cell above and left of the centre on: an inner
    # cell is in the boxes of 4 of 20 centres, one in the last row or column in those of 2, the last
    # one in that of 1
    expected = np.array([[4, 4, 4, 4, 2]] * 3 + [[2, 2, 2, 2, 1]]) / 20
    shares = boxes[0].mean(0)
    assert shares[0] == 0  # the mean token
    assert shares[1:].reshape(4, 5) == pytest.approx(expected, abs=0.05)
    assert (boxes[0] == boxes[1]).all(1).mean() < 0.1


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_draw_the_views_and_boxes_that_one_would(workers: int) -> None:
    # 41 rows in batches of 8: the last batch has one row, and nothing for the other workers
    features = NumberedViews(41, views=3)
    recipe = Recipe(feature_cutout=0.5, batch_size=8)
    together = drawn(features, recipe, seed=2, epoch=7, workers=workers)
    assert together == drawn(features, recipe, seed=2, epoch=7)


def test_draws_belong_to_the_row_whichever_rows_are_trained_on() -> None:
    features = NumberedViews(60, views=3)
    recipe = Recipe(feature_cutout=0.5)
    everything = drawn(features, recipe, seed=0, epoch=0)
    some = np.array([40, 3, 17, 59])
    few = drawn(features, recipe, rows=some, seed=0, epoch=0)
    assert few == {row: everything[row] for row in some.tolist()}


def test_views_that_are_all_alike_change_no_bit() -> None:
    recipe = Recipe(epochs=3, output_dim=8)
    one, reports = train(recipe, Cache(48), val_rows=np.arange(8))
    alike, same = train(recipe, Cache(48, views=5), val_rows=np.arange(8))
    for name, value in one.state_dict().items():
        assert torch.equal(value, alike.state_dict()[name]), name
    assert [report.val_map for report in reports] == [report.val_map for report in same]


def test_other_views_and_boxes_train_other_weights() -> None:
    recipe = Recipe(epochs=2, output_dim=8)
    cutout = recipe.model_copy(update={"feature_cutout": 0.7})
    models = [
        train(recipe, Cache(48))[0],
        train(recipe, Cache(48, views=2, noise=0.1))[0],
        train(cutout, Cache(48))[0],
    ]
    weights = [model.state_dict()["image_projector.output.weight"] for model in models]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert not torch.equal(weights[first], weights[second])


def test_predictions_are_of_the_clean_view_with_all_its_locations() -> None:
    model = build_model(Recipe(feature_cutout=0.7), DIM, seed=0)
    rows = np.arange(20)
    clean = predict(model, Cache(20), rows, texts())
    assert torch.equal(predict(model, Cache(20, views=4, noise=9.0), rows, texts()), clean)


def test_it_learns_with_boxes_dropped() -> None:
    # an object fills one of six locations, and each step hides one of them
    recipe = Recipe(
        epochs=20, lr=1e-2, batch_size=16, hidden_dim=32, output_dim=16, mfi_weight=0.3,
        feature_cutout=0.5,
    )  # fmt: skip
    _, reports = train(recipe, Cache(256), val_rows=np.arange(64))
    assert reports[-1].val_map > 0.8
    assert reports[-1].val_map > reports[0].val_map


def test_boxes_by_hand() -> None:
    # 7 x 4 at 0.5: 3 x 2 cells, from one above and one to the left of the centre on
    middle, corner, far = location_boxes(
        np.array([[3, 2], [0, 0], [6, 3]]), (7, 4), fraction=0.5
    ).view(3, 7, 4)
    cells = [(2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2)]
    assert [tuple(cell) for cell in middle.nonzero().tolist()] == cells
    assert [tuple(cell) for cell in corner.nonzero().tolist()] == [(0, 0), (1, 0)]
    assert [tuple(cell) for cell in far.nonzero().tolist()] == [(5, 2), (5, 3), (6, 2), (6, 3)]


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 1, exclude_max=True), st.randoms())
def test_a_box_never_drops_everything(
    rows: int, columns: int, fraction: float, random: Random
) -> None:
    centre = np.array([[random.randrange(rows), random.randrange(columns)]])
    height, width = int(fraction * rows), int(fraction * columns)
    if height == 0 or width == 0:
        with pytest.raises(ValueError, match="larger feature_cutout"):
            location_boxes(centre, (rows, columns), fraction=fraction)
        return
    box = location_boxes(centre, (rows, columns), fraction=fraction)
    assert 0 < int(box.sum()) <= height * width < rows * columns
    assert box[0, centre[0, 0] * columns + centre[0, 1]]


def test_locations_that_do_not_fit_the_grid_are_refused() -> None:
    features = NumberedViews(4, views=1, locations=22)
    with pytest.raises(ValueError, match="22 locations are not a grid of 4 x 5"):
        drawn(features, Recipe(feature_cutout=0.5), seed=0, epoch=0)
    drawn(features, Recipe(), seed=0, epoch=0)  # nothing depends on the grid without boxes
