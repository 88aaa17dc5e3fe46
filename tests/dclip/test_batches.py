"""Batches: what each epoch draws, shares of workers, boxes by hand, reading ahead."""

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dclip.fitting.batches import (
    Batch,
    FeatureSource,
    MemoryFeatures,
    epoch_batches,
    hold_out,
    location_boxes,
    prefetch,
)
from dclip.training import Recipe


@given(st.integers(1, 200), st.floats(0, 0.9), st.integers(0, 5))
def test_held_out_rows_and_training_rows_part_the_images(
    images: int, fraction: float, seed: int
) -> None:
    rows, held = hold_out(images, fraction, seed=seed)
    assert sorted([*rows.tolist(), *held.tolist()]) == list(range(images))
    assert len(held) == round(images * fraction)
    again, _ = hold_out(images, fraction, seed=seed)
    assert np.array_equal(rows, again)


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


# ---------------------------------------------------------------------------------------------
# Reading ahead, and features held in memory
# ---------------------------------------------------------------------------------------------


def test_an_epoch_goes_on_at_the_batch_it_was_stopped_at() -> None:
    features = NumberedViews(41, views=3)
    recipe = Recipe(feature_cutout=0.5, batch_size=8)
    whole = list(epoch_batches(features, np.arange(41), recipe, seed=1, epoch=2))
    rest = list(epoch_batches(features, np.arange(41), recipe, seed=1, epoch=2, first_step=4))
    for batch, same in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(batch[:3], same[:3], strict=True))  # type: ignore[arg-type]


def test_batches_read_ahead_are_the_batches(device: torch.device) -> None:
    features = NumberedViews(41, views=3)
    recipe = Recipe(feature_cutout=0.5, batch_size=8)
    plain = list(epoch_batches(features, np.arange(41), recipe, seed=1, epoch=2))
    ahead = list(prefetch(iter(plain), device))
    assert len(ahead) == len(plain) == 6
    for batch, same in zip(plain, ahead, strict=True):
        assert batch.known == same.known
        for one, two in zip(batch[:3], same[:3], strict=True):
            assert torch.equal(one, two.cpu())  # type: ignore[arg-type, union-attr]


def test_an_error_while_reading_ahead_arrives() -> None:
    def batches() -> Iterator[Batch]:
        yield from epoch_batches(NumberedViews(4, views=1), np.arange(4), Recipe(), seed=0, epoch=0)
        raise OSError("shard 3 is gone")

    ahead = prefetch(batches(), torch.device("cpu"))
    assert next(ahead).known == 8
    with pytest.raises(OSError, match="shard 3 is gone"):
        next(ahead)


def test_reading_ahead_ends_with_its_reader() -> None:
    read = []

    def batches() -> Iterator[Batch]:
        for batch in epoch_batches(
            NumberedViews(64, views=1), np.arange(64), Recipe(batch_size=1), seed=0, epoch=0
        ):
            read.append(batch)
            yield batch

    ahead = prefetch(batches(), torch.device("cpu"), depth=2)
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    assert len(read) <= 5


def test_features_in_memory_are_the_features(device: torch.device) -> None:
    features = NumberedViews(20, views=3)
    held = MemoryFeatures.copy_of(features, device, rows_per_read=7)
    rows, views = np.array([19, 0, 7, 7]), np.array([2, 0, 1, 2])
    assert torch.equal(held.local(rows, views).cpu(), features.local(rows, views))
    assert torch.equal(held.local(rows).cpu(), features.local(rows))
    assert held.local(rows).device.type == device.type
    batches = epoch_batches(held, np.arange(20), Recipe(batch_size=20), seed=0, epoch=0)
    (batch,) = prefetch(batches, device)  # what lies on "cuda" is on the "cuda:0" that is meant
    assert batch.local.device.type == device.type


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_are_a_source_like_any_other(dtype: torch.dtype) -> None:
    local = torch.randn(3, 5, 21, 8).to(dtype)
    labels = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    features = MemoryFeatures(local, labels, grid=(4, 5))
    assert isinstance(features, FeatureSource)
    assert (len(features), features.views, features.grid) == (5, 3, (4, 5))
    assert torch.equal(features.local(np.array([4, 0]), np.array([2, 1])), local[[2, 1], [4, 0]])
    one = MemoryFeatures(local[0], labels.bool(), grid=(4, 5))
    assert torch.equal(one.local(np.array([3])), local[0, [3]])
    assert one.labels.tolist() == labels.bool().int().tolist()
    assert repr(features).startswith("MemoryFeatures(3 views of 5 images, 21 locations of 8")


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((4, 21, 8), torch.zeros(5, 2), "features of 4 images and labels of 5"),
        ((5, 22, 8), torch.zeros(5, 2), "22 locations are not a grid of 4 x 5"),
        ((5, 21, 8), torch.full((5, 2), 2), "labels must be 1"),
        ((0, 21, 8), torch.zeros(0, 2), "there are no images"),
    ],
)
def test_tensors_that_are_no_features_are_refused(
    shape: tuple[int, ...], labels: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryFeatures(torch.zeros(shape), labels, grid=(4, 5))
