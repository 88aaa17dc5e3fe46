"""The points of a sweep: every combination once, draws that repeat, and nothing out of range."""

import pytest

from pipeline.config import SweepConfig
from pipeline.errors import UsageError
from pipeline.sweep import points


def test_the_grid_takes_every_combination_and_lambda_only_with_mfi() -> None:
    config = SweepConfig(redundancy_weight=[0.2, 1.0], mfi_weight=[0.0, 0.1], output_dim=[4, 8])
    found = [
        (p["redundancy_weight"], p["mfi_weight"], p["output_dim"]) for p in points(config, seed=0)
    ]
    # alpha = 0 appears once per dimension: lambda weighs nothing there
    assert found == [
        (0.2, 0.0, 4), (0.2, 0.0, 8), (0.2, 0.1, 4), (0.2, 0.1, 8), (1.0, 0.1, 4), (1.0, 0.1, 8),
    ]  # fmt: skip


def test_fewer_trials_are_drawn_from_the_grid_without_repetition() -> None:
    config = SweepConfig(trials=4)
    chosen = [tuple(point.items()) for point in points(config, seed=1)]
    grid = [tuple(point.items()) for point in points(SweepConfig(), seed=1)]
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(grid)
    assert chosen == [tuple(point.items()) for point in points(config, seed=1)]


def test_random_points_stay_within_what_was_given() -> None:
    config = SweepConfig(
        grid=False,
        trials=50,
        mfi_weight=[0.0, 0.01, 1.0],
        redundancy_weight=[0.5],
        output_dim=[4, 8],
    )
    found = points(config, seed=0)
    assert len(found) == 50
    assert all(0.01 <= point["mfi_weight"] <= 1.0 for point in found)
    assert all(point["redundancy_weight"] == pytest.approx(0.5) for point in found)
    assert {point["output_dim"] for point in found} == {4, 8}
    below = sum(point["mfi_weight"] < 0.1 for point in found)
    assert 15 < below < 35  # log-uniform: half of the draws below the geometric mean


def test_random_search_over_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="positive"):
        points(SweepConfig(grid=False, mfi_weight=[0.0]), seed=0)
