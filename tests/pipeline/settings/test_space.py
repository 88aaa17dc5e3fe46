"""The points of a sweep: every combination once, draws that repeat, nothing the recipe refuses."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dclip.fitting.subset import Subset
from pipeline.settings.config import Config
from pipeline.settings.space import Entry, entries, packs
from pipeline.settings.training import at
from pipeline.terminal.errors import UsageError

LAMBDA, ALPHA, DIM = "dclip.redundancy_weight", "dclip.mfi_weight", "dclip.output_dim"


def config(space: dict[str, Any] | str, **sweep: Any) -> Config:
    return Config.model_validate({"sweep": {"space": space, **sweep}})


def values(config: Config) -> list[tuple[Any, ...]]:
    return [tuple(point.values()) for _, point in entries(config)]


def test_the_grid_takes_every_combination_and_lambda_only_with_mfi() -> None:
    space = {LAMBDA: [0.2, 1.0], ALPHA: [0.0, 0.1], DIM: [4, 8]}
    # alpha = 0 appears once per dimension: lambda weighs nothing there
    assert values(config(space)) == [
        (0.2, 0.0, 4), (0.2, 0.0, 8), (0.2, 0.1, 4), (0.2, 0.1, 8), (1.0, 0.1, 4), (1.0, 0.1, 8),
    ]  # fmt: skip


def test_fewer_trials_are_drawn_from_the_grid_without_repetition() -> None:
    space = {LAMBDA: [0.2, 1.0], ALPHA: [0.1, 1.0], DIM: [4, 8]}
    chosen = values(config(space, trials=4))
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(values(config(space)))
    assert chosen == values(config(space, trials=4))
    assert chosen == values(config(space, trials=4, search="random"))
    assert len(values(config(space, search="random", trials=99))) == 8


def test_any_key_of_the_recipe_and_the_seed_can_be_swept_as_text_or_yaml() -> None:
    found = values(config("train.lr=1e-3,3e-3,seed=0,1,train.optimizer=sgd,dclip.hidden-dim=8"))
    assert found == [(0.001, 0, "sgd", 8), (0.001, 1, "sgd", 8), (0.003, 0, "sgd", 8),
                     (0.003, 1, "sgd", 8)]  # fmt: skip
    yaml = {"train.lr": ["1e-3", "3e-3"], "seed": [0, "1", 1], "train.optimizer": "sgd",
            "dclip.hidden_dim": [8]}  # fmt: skip
    assert values(config(yaml)) == found


def test_the_part_of_the_data_can_be_swept() -> None:
    space = {"subset.num_images": [20, 50], "subset.label_fraction": ["0.5"]}
    asked = config(space)
    assert values(asked) == [(20, 0.5), (50, 0.5)]
    (_, second) = entries(asked)
    assert at(asked, second.point).subset == Subset(num_images=50, label_fraction=0.5)
    assert len(packs(asked, entries(asked), 1)) == 2  # each part has passes of its own


def test_ranges_are_drawn_evenly_on_a_logarithmic_scale_and_lists_by_value() -> None:
    space = {ALPHA: "0.01..1", DIM: "4..64", "dclip.gamma_neg": "0..2", "seed": [3, 4]}
    found = entries(config(space, search="random", trials=400))
    assert len(found) == 400
    points = [point for _, point in found]
    assert all(0.01 <= point[ALPHA] <= 1 for point in points)
    assert 160 < sum(point[ALPHA] < 0.1 for point in points) < 240  # half below the middle, 0.1
    assert 160 < sum(point["dclip.gamma_neg"] < 1 for point in points) < 240  # linear from 0
    assert {type(point[DIM]) for point in points} == {int}
    assert {4, 64} <= {point[DIM] for point in points} <= set(range(4, 65))
    assert 160 < sum(point[DIM] < 16 for point in points) < 240
    assert 160 < sum(point["seed"] == 3 for point in points) < 240
    assert found == entries(config(space, search="random", trials=400))


def test_a_few_points_are_drawn_from_lists_of_any_number_of_combinations() -> None:
    keys = (LAMBDA, ALPHA, "train.lr", "dclip.gamma_neg", "train.warmup_lr", "seed")
    space = {key: list(range(1, 40)) for key in keys}
    found = values(config(space, search="random", trials=20))
    assert len(set(found)) == 20


def test_whole_numbers_that_run_out_end_the_draw() -> None:
    found = values(config({"seed": "0..2"}, search="random", trials=9))
    assert sorted(found) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"train.lrr": [1]}, "'train.lrr' cannot be swept; did you mean 'train.lr'"),
        ({"lr": [1]}, "'lr' cannot be swept; did you mean 'train.lr'"),
        ({"output": ["a"]}, "'output' cannot be swept"),
        ({"train.preset": ["author"]}, "'train.preset' cannot be swept; these can"),
        ({"train.workers": [1, 2]}, "'train.workers' cannot be swept"),
        ({"train.lr": [-1]}, "train.lr: input should be greater than 0, got -1"),
        ({DIM: [4, 4.5]}, "dclip.output_dim: input should be a valid integer"),
        ({"train.optimizer": ["adam"]}, "train.optimizer: input should be 'sgd' or 'adamw'"),
        ({"seed": [2**63]}, "seed: input should be less than or equal to 9223372036854775807"),
        ({"seed": [-1]}, "seed: input should be greater than or equal to 0, got -1"),
        ({ALPHA: "0.1..1"}, "a grid takes no range"),
        ({"seed": list(range(200)), DIM: list(range(2, 102))}, "a grid of 20000 points"),
    ],
)
def test_what_the_recipe_refuses_is_named_before_anything_runs(
    space: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        entries(config(space))
    assert words in str(caught.value)


@pytest.mark.parametrize("epochs", [[5, 10], "5..10", ["5", "10"]])
def test_asha_takes_no_trainings_of_different_lengths(epochs: list[Any] | str) -> None:
    with pytest.raises(
        UsageError, match=r"take train\.epochs out of sweep\.space, or use --no-asha"
    ):
        entries(config({"train.epochs": epochs}, search="random", asha=True))
    assert entries(config({"train.epochs": epochs}, search="random"))


def test_ten_thousand_trials_are_shared_out_in_a_moment_and_more_are_refused() -> None:
    wide = config({"train.lr": "1e-5..1e-1", "seed": "0..1000"}, search="random", trials=10_000)
    trials = entries(wide)
    assert len({tuple(entry.point.values()) for entry in trials}) == 10_000
    assert sum(map(len, packs(wide, trials, 2))) == 10_000
    with pytest.raises(UsageError, match="10001 trials, a sweep has at most 10000"):
        entries(config({"train.lr": "1e-5..1e-1"}, search="random", trials=10_001))


def test_both_ends_of_a_range_are_checked() -> None:
    with pytest.raises(UsageError, match=r"dclip\.clip: input should be less than 1, got 2"):
        entries(config({"dclip.clip": "0..2"}, search="random"))
    with pytest.raises(UsageError, match="whole number"):
        entries(config({DIM: "4..8.5"}, search="random"))


@pytest.mark.parametrize("text", ["train.lr", "train.lr=", "1,train.lr=2", "a=3..1", "a=x..2"])
def test_text_that_is_no_space_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"KEY=VALUE|LOW\.\.HIGH|a range goes from"):
        config(text)


def test_points_that_may_train_together_are_dealt_out_evenly() -> None:
    space = {ALPHA: [0.1, 1.0], DIM: [4, 8], "seed": [0, 1, 2]}
    trials = entries(config(space))
    groups = packs(config(space), trials, 2)
    assert [len(group) for group in groups] == [6, 6]
    # both have as many of the wide trials
    assert [Counter(point[DIM] for _, point in group)[8] for group in groups] == [3, 3]
    assert [len(group) for group in packs(config(space, pack="never"), trials, 2)] == [1] * 12
    assert [len(group) for group in packs(config(space, asha=True), trials, 2)] == [1] * 12


@given(
    rates=st.integers(1, 3), seeds=st.integers(1, 40), slots=st.integers(1, 9)
)  # fmt: skip
def test_packs_hold_every_trial_once_and_never_mix_what_cannot_train_together(
    rates: int, seeds: int, slots: int
) -> None:
    space = {"train.lr": [10.0**-k for k in range(rates)], "seed": list(range(seeds))}
    trials = entries(config(space))
    groups = packs(config(space), trials, slots)
    assert sorted(entry.number for group in groups for entry in group) == list(range(len(trials)))
    assert all(len({point["train.lr"] for _, point in group}) == 1 for group in groups)
    assert all(1 <= len(group) <= 32 for group in groups)
    assert len(groups) <= max(slots, rates) + rates * (1 + seeds // 32)


def test_a_point_changes_what_it_names_and_nothing_else() -> None:
    config = Config()
    changed = at(config, Entry(0, {ALPHA: 0.5, "train.lr": 0.1, "seed": 3}).point)
    assert changed.own == config.own.model_copy(update={"mfi_weight": 0.5})
    assert changed.loop == config.train.model_copy(update={"lr": 0.1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.lr", "inf", "train.lr: input should be a finite number, got 'inf'"),
        ("train.selection", "best_on_val", "train.selection: selection best_on_val needs"),
    ],
)
def test_what_the_recipe_refuses_is_told_in_its_words(key: str, value: str, words: str) -> None:
    asked = Config.model_validate(
        {"train": {"val_fraction": 0}, "sweep": {"space": {key: [value]}}}
    )
    with pytest.raises(UsageError, match=f"^sweep.space: {words}"):
        entries(asked)
