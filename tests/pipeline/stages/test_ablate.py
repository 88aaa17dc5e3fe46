"""Ablations: what the rows are, what trains together, and that only what is missing is trained."""

import csv
import json
from pathlib import Path
from typing import ClassVar

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from dclip.fitting.pack import common_fields_that_differ
from dclip.methods.settings import DCLIPSettings
from dclip.training import Recipe
from pipeline.features.opened import open_features
from pipeline.features.plan import plan_features
from pipeline.records.ablations import Ablation, Training, packs
from pipeline.settings.config import Config, config_class
from pipeline.settings.rows import Row, rows
from pipeline.settings.sections import EvaluateConfig, TrainConfig
from pipeline.settings.training import Trained
from pipeline.stages import ablate, extract
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import ablation
from pipeline.work.packs import Job, begin

from ..conftest import WITH_RAY, settings, with_train
from .test_extract import make_here


def wanted(tmp_path: Path, **changes: object) -> Config:
    return settings(tmp_path, ablate={"epochs": 2, "seeds": 2, **changes})


def test_every_row_differs_from_the_settings_in_one_thing(tmp_path: Path) -> None:
    config = wanted(tmp_path)
    table = [row for row in rows(config) if row.study != "presets"]
    base = config.own.model_dump()
    changed: dict[str, list[set[str]]] = {}
    for row in table:
        after = row.trained.own.model_dump()
        assert row.trained.loop == config.train.model_copy(update={"epochs": 2})
        changed.setdefault(row.study, []).append(
            {name for name in base if base[name] != after[name]}
        )
    assert changed == {
        "losses": [
            set(),
            {"mfi_weight"},
            {"gamma_neg", "gamma_pos", "clip"},
            {"gamma_pos", "clip"},  # gamma_neg is 2 already
        ],
        "pooling": [set(), {"aggregation"}],
        "output_dim": [{"output_dim"}, {"output_dim"}, set(), {"output_dim"}],
        "redundancy_weight": [{"redundancy_weight"}] * 2 + [set(), {"redundancy_weight"}],
        "mfi_weight": [{"mfi_weight"}] * 2 + [set(), {"mfi_weight"}],
    }
    lambdas = [r.trained.own.redundancy_weight for r in table if r.study == "redundancy_weight"]
    assert lambdas == [0, 0.2, 1, 5]  # of 1.0


def test_presets_are_compared_as_they_are_but_for_the_epochs(tmp_path: Path) -> None:
    author, robust = rows(wanted(tmp_path, studies=["presets"]))
    for row, recipe in (
        (author, Recipe(preset="author", epochs=2)),
        (robust, Recipe(preset="robust", epochs=2)),
    ):
        assert (row.trained.loop.loop, row.trained.own) == (recipe.loop, recipe.method)
        assert row.trained.loop.val_fraction == 0.25  # where, not what


def test_rows_are_data_and_keys_can_be_varied(tmp_path: Path) -> None:
    mine = [{"study": "rate", "label": "fast", "set": {"train.lr": "x10", "dclip.mfi-weight": 0}}]
    (row,) = rows(wanted(tmp_path, rows=mine))
    assert (row.study, row.label) == ("rate", "fast")
    assert row.trained.loop.lr == pytest.approx(0.01)
    assert row.trained.own.mfi_weight == 0
    varied = rows(wanted(tmp_path, vary={"train.lr": ["x0.1", "0.5"], "dclip.clip": [0]}))
    assert [(row.study, row.label) for row in varied] == [
        ("lr", "lr = x0.1"), ("lr", "lr = 0.5"), ("clip", "clip = 0"),
    ]  # fmt: skip
    assert [row.trained.loop.lr for row in varied] == [1e-4, 0.5, 1e-3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"studies": ["loses"]}, r"there is no 'loses'; losses, pooling"),
        ({"vary": {"train.mfi_weight": [1]}}, "did you mean 'dclip.mfi_weight'"),
        ({"vary": {"dclip.clip": [2]}}, "row 'clip = 2': .*less than 1, got 2"),
        ({"vary": {"dclip.hidden_dim": ["x2"]}}, "the settings have no number there"),
        ({"vary": {"seed": [0, 1]}}, "seed is the same in all rows"),
        ({"vary": {"train.selection": ["last"]}}, "train.selection is the same in all rows"),
        (
            {"vary": {"train.preset": ["best"]}},
            "has the presets anchored, robust, author, not 'best'",
        ),
    ],
)
def test_a_row_that_cannot_be_is_named(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        rows(wanted(tmp_path, **changes))


def test_packs_hold_every_training_once_and_only_such_as_train_together(tmp_path: Path) -> None:
    trainings = [Training("dclip", row.trained, seed, f"{n}-{seed}")
                 for n, row in enumerate(rows(wanted(tmp_path))) for seed in range(3)]  # fmt: skip
    found = packs(trainings, 4)
    assert sorted(one.name for pack in found for one in pack) == sorted(t.name for t in trainings)
    for pack in found:
        assert 1 <= len(pack) <= 4
        assert len({one.trained.loop for one in pack}) == 1
        assert not common_fields_that_differ([one.trained.own for one in pack])


def test_the_table_gives_mean_and_sample_deviation_of_what_did_not_diverge() -> None:
    def result(score: float, diverged: str = "") -> dict[str, object]:
        line = {"epoch": 1.0, "val_map": score / 2, "inter_class_cosine": 0.0}
        return {"diverged": diverged, "test": {"map": score}, "history": [line], "parameters": 7}

    recipe = Trained(TrainConfig(), DCLIPSettings())
    row, results = Row("losses", "x", recipe), [result(0.2), result(0.6), result(9.0, "inf")]
    (line,) = ablation.summary([row], [results], range(3))
    assert (line["test_map"], line["val_map"]) == pytest.approx((0.4, 0.2))
    assert line["test_map_std"] == pytest.approx(0.08**0.5)  # (0.2^2 + 0.2^2) / (2 - 1)
    assert (line["diverged"], line["seeds"], line["parameters"]) == (1, 3, 7)
    (line,) = ablation.summary([row], [results[2:]], range(2, 3))
    assert (line["test_map"], line["test_map_std"]) == (None, None)
    config = Config(ablate={"seeds": 1})  # type: ignore[arg-type]
    assert "1 of 1 diverged" in ablation.as_text(config, [line])


@pytest.mark.usefixtures("_toy_on_path")
def test_settings_may_be_lists_and_paths(tmp_path: Path) -> None:
    vary = {"global_head.sizes": [[4], [3, 2]], "global_head.words": ["a.txt", "words.txt"]}
    values = wanted(tmp_path).model_dump(exclude={"dclip"})
    values |= {"method": "toy_global:GlobalHead", "ablate": {"seeds": 2, "vary": vary}}
    asked = Ablation(config_class("toy_global:GlobalHead").model_validate(values))
    assert [row.trained.own.sizes for row in asked.rows] == [[4], [3, 2], [4], [4]]
    assert len(asked.trainings) == 6  # the first and the last row are the same trainings
    names = {name: {"seed": one.seed} for name, one in asked.trainings.items()}
    first, *_, last = asked.by_row(names)
    assert first == last == [{"seed": 0}, {"seed": 1}]
    assert asked.label_of(next(iter(names))) == "sizes: sizes = [4]"
    assert [len(pack) for pack in packs(asked.trainings.values(), 9)] == [4, 2]  # sizes may differ


@pytest.mark.usefixtures("_toy_on_path")
def test_f1_of_another_threshold_is_another_result(tmp_path: Path) -> None:
    """A result of an earlier version, which does not say its threshold, has no F1 any more."""
    usual = Ablation(wanted(tmp_path))
    high = wanted(tmp_path).model_copy(update={"evaluate": EvaluateConfig(threshold=0.9)})
    assert Ablation(high).name != usual.name
    first, second, *_ = usual.trainings
    test = {"map": 0.5, "ap": [0.5], "cf1": 0.25}
    for name, more in ((first, {}), (second, {"threshold": 0.5})):
        path = usual.result_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"test": test, **more}))
    assert usual.done()[first]["test"] == {"map": 0.5, "ap": [0.5]}
    assert usual.done()[second]["test"] == test
    assert not Ablation(high).done()


def test_a_test_split_without_positives_leaves_the_score_open(tmp_path: Path) -> None:
    result = {"diverged": "", "test": {"map": None}, "history": [{"epoch": 1.0}], "parameters": 7}
    recipe = Trained(TrainConfig(), DCLIPSettings())
    (line,) = ablation.summary([Row("losses", "x", recipe)], [[result]], [0])
    assert (line["test_map"], line["val_map"], line["inter_class_cosine"]) == (None, None, None)
    shown = ablation.as_text(wanted(tmp_path, seeds=1), [line]).splitlines()[2]
    assert shown.split() == ["x", "-", "-", "-", "7"]


class TestOnRay:
    pytestmark: ClassVar = [*WITH_RAY, pytest.mark.usefixtures("ray_session")]

    def test_only_what_is_missing_is_trained(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = wanted(tmp_path, studies=["losses", "pooling"], pack=3)
        for split in ("train", "test"):
            make_here(plan_features(config, split), config)
        extract.extract(config, [plan_features(config, split) for split in ("train", "test")])
        report = ablate.run(config)
        assert report["trained_now"] == 10  # 4 losses and one other order, two seeds each
        assert [row["study"] for row in report["rows"]] == ["losses"] * 4 + ["pooling"] * 2
        assert report["rows"][4]["by_seed"] == report["rows"][0]["by_seed"]
        sheet, _, picture = map(Path, report["files"])
        with sheet.open() as file:
            told = list(csv.DictReader(file))
        assert float(told[1]["test_map"]) == pytest.approx(report["rows"][1]["test_map"])
        with Image.open(picture) as image:
            assert np.asarray(image.convert("L")).std() > 5
        assert "ASL only" in capsys.readouterr().out

        store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert (len(runs), len(children)) == (11, 10)
        assert all(run.info.status == "FINISHED" for run in runs)
        assert all("test/map" in run.data.metrics for run in children)
        steps = store.get_metric_history(children[0].info.run_id, "val/map")
        assert [metric.step for metric in steps] == [1, 2]

        lost = sorted((tmp_path / "ablations" / "trainings").iterdir())[0]
        before = json.loads(lost.read_text())
        lost.unlink()  # as if it had been killed before this one
        assert ablate.run(config)["trained_now"] == 1
        assert len(store.search_runs([run.info.experiment_id for run in runs[:1]])) == 11
        after = json.loads(lost.read_text())
        # alone its products are summed in another order, by which ranks may change
        assert after["test"]["map"] == pytest.approx(before["test"]["map"], abs=1e-3)
        lost.write_text("{")
        with pytest.raises(StageError, match=f"{lost.name} is damaged; delete it"):
            ablate.run(config)

    def test_a_row_is_what_train_trains(self, tmp_path: Path) -> None:
        """The scores of the first row are those of a training of its own, without Ray."""
        from dclip.fitting.batches import hold_out
        from dclip.fitting.fit import fit
        from dclip.metrics import mean_average_precision

        config = wanted(tmp_path, studies=["losses"], seeds=1)
        for split in ("train", "test"):
            make_here(plan_features(config, split), config)
        extract.extract(config, [plan_features(config, split) for split in ("train", "test")])
        row = ablate.run(config)["rows"][0]
        one = with_train(config, epochs=2)
        reader = open_features(plan_features(config, "train").folders, tmp_path)
        own = (Trained(one.train, one.own),)
        training = begin(Job("dclip", own, (0,), 0, (), tmp_path), reader)
        fit(training, reader, hold_out(len(reader), one.train.val_fraction, seed=0)[0], seed=0)
        test = open_features(plan_features(config, "test").folders, tmp_path)
        (scores,) = training.predict(test, np.arange(len(test)))
        assert torch.isfinite(scores).all()
        expected = float(mean_average_precision(scores, test.labels))
        assert row["test_map"] == pytest.approx(expected, abs=1e-3)
