"""Sweeps on a real Ray and a real MLflow: packs, searches, failures, kills, the winner."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from dclip.checkpoints.origin import read_about
from dclip.fitting.batches import Batch
from pipeline.features.plan import plan_features
from pipeline.records.checkpoints import load_checkpoint
from pipeline.settings.config import Config
from pipeline.settings.space import Entry
from pipeline.stages import extract, sweep
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import evaluation
from pipeline.work.trials import read_results, state_files

from ..conftest import TOY, WITH_RAY, settings, with_train, workers_below

pytestmark = WITH_RAY

LAMBDA, ALPHA, DIM = "dclip.redundancy_weight", "dclip.mfi_weight", "dclip.output_dim"


@pytest.fixture(scope="module")
def output(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the features of both splits."""
    folder = tmp_path_factory.mktemp("sweep")
    extract.run(settings(folder))
    return folder


def config(output: Path, space: dict[str, Any], **changes: Any) -> Config:
    return settings(output, sweep={"epochs": 3, "space": space, **changes})


def runs(output: Path, name: str) -> dict[str, mlflow.entities.Run]:
    """Runs of a sweep by their key."""
    store = mlflow.MlflowClient(f"sqlite:///{output.absolute() / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("dclip-shapes")
    if experiment is None:
        return {}
    found = store.search_runs(
        [experiment.experiment_id], f"tags.`dclip.sweep_id` = '{name}'", max_results=1000
    )
    keys = [run.data.tags["dclip.key"] for run in found]
    assert len(set(keys)) == len(keys), "a run is there twice"
    return dict(zip(keys, found, strict=True))


def steps(output: Path, run: mlflow.entities.Run) -> list[int]:
    store = mlflow.MlflowClient(f"sqlite:///{output.absolute() / 'mlflow.db'}")
    return [m.step for m in store.get_metric_history(run.info.run_id, "train/loss")]


def by_point(report: dict[str, Any], *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[key] for key in keys): row for row in report["trials"]}


def test_trials_that_train_together_end_as_each_would_alone(output: Path) -> None:
    space = {LAMBDA: [0.2, 1.0], ALPHA: [0.1, 1.0], DIM: [4, 8], "seed": [0, 3]}
    together = by_point(sweep.run(config(output, space)), *space)
    alone = by_point(sweep.run(config(output, space, pack="never")), *space)
    assert together.keys() == alone.keys()
    assert len(alone) == 16
    for point, row in alone.items():
        assert row["epochs"] == together[point]["epochs"] == 3
        assert together[point]["val_map"] == pytest.approx(row["val_map"], abs=1e-4)
        assert together[point]["inter_class_cosine"] == pytest.approx(
            row["inter_class_cosine"], abs=1e-3
        )
    assert len({round(row["inter_class_cosine"], 6) for row in alone.values()}) == 16


def test_the_winner_becomes_a_checkpoint_and_a_registered_model_once(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(output, {ALPHA: [0.0, 0.1], "train.lr": [1e-3, 1e-2]})
    report = sweep.run(settings)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    printed = capsys.readouterr().out
    assert report["model"] in printed
    assert report["checkpoint"] in printed
    with Path(report["files"][0]).open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["val_map"]) for row in table] == sorted(
        (row["val_map"] for row in report["trials"]), reverse=True
    )
    checkpoints = sorted(Path(report["checkpoint"]).parent.iterdir())
    assert [path.name for path in checkpoints] == [f"trial-{n:04d}.safetensors" for n in range(4)]
    scores = {row["trial"]: row["val_map"] for row in report["trials"]}
    for number, path in enumerate(checkpoints):
        assert read_about(path).history[-1]["val_map"] == scores[number]
    method, about = load_checkpoint(Path(report["checkpoint"]))
    assert about.loop.lr == report["best"]["train.lr"]
    assert about.settings.mfi_weight == report["best"][ALPHA]
    assert about.history[-1]["val_map"] == report["best"]["val_map"]
    plan = plan_features(settings, settings.test_split)
    scored = evaluation.evaluate(settings, plan, {"dclip": Path(report["checkpoint"])}, {})
    assert scored.systems["dclip"]["map"] > 0
    # what MLflow loads says the same, for any number of images and locations
    uri = f"sqlite:///{output / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pytorch.load_model(report["model"])
    local = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 7, 16))).float()
    expected = method.scores(Batch(local, torch.zeros(5, 16)))
    torch.testing.assert_close(loaded(local), expected)
    store = mlflow.MlflowClient(uri)
    version = store.get_model_version_by_alias("dclip-shapes", "best")
    assert report["model"] == f"models:/dclip-shapes/{version.version}"
    assert version.tags["dclip.mfi_weight"] == f"{about.settings.mfi_weight:g}"
    assert {"dclip.output_dim", "dclip.redundancy_weight", "train.lr", "val_map"} <= set(
        version.tags
    )
    key = f"{report['name']}/{report['best']['trial']}"
    child = runs(output, report["name"])[key]
    assert version.run_id == child.info.run_id
    # and it is explained wherever one looks for it
    parent = runs(output, report["name"])[report["name"]]
    words = parent.data.tags["mlflow.note.content"]
    assert words == child.data.tags["mlflow.note.content"] == version.description
    assert words == store.get_registered_model("dclip-shapes").description
    assert f"trial {report['best']['trial']}, " in words
    assert f"Evaluate it: {report['evaluate']}" in words
    assert words in printed
    before = len(store.search_model_versions("name = 'dclip-shapes'"))
    again = sweep.run(settings)
    assert (again["trials"], again["model"]) == (report["trials"], report["model"])
    later = sweep.run(config(output, {"train.lr": [1e-3]}))
    sweep.run(settings)  # a sweep that is repeated takes nothing from a later one
    best = store.get_model_version_by_alias("dclip-shapes", "best").version
    assert later["model"] == f"models:/dclip-shapes/{best}" != report["model"]
    found = runs(output, report["name"])
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert len(store.search_model_versions("name = 'dclip-shapes'")) == before + 1


def test_a_point_that_diverges_is_recorded_and_disturbs_no_other(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"train.optimizer": ["sgd"], "seed": [0, 1]}  # adamw steps equally far at any loss
    report = sweep.run(config(output, {ALPHA: [0.1, 1e38], **space}))
    rows = by_point(report, ALPHA, "seed")
    assert report["failed"] == 2
    assert "lower lr or mfi_weight" in rows[1e38, 1]["error"]
    assert "failed: the loss is" in capsys.readouterr().out
    calm = by_point(sweep.run(config(output, {ALPHA: [0.1], **space})), "seed")
    for seed in (0, 1):
        assert rows[0.1, seed]["val_map"] == pytest.approx(calm[seed,]["val_map"], abs=1e-4)
    found = runs(output, report["name"])
    for row in report["trials"]:
        run = found[f"{report['name']}/{row['trial']}"]
        failed = row[ALPHA] == 1e38
        assert run.info.status == ("FAILED" if failed else "FINISHED")
        assert run.data.tags.get("dclip.error", "") == row["error"]


def test_a_state_of_another_point_is_not_taken_over(tmp_path: Path) -> None:
    pack = [Entry(5, {"train.lr": 0.1})]
    _, reports = state_files(tmp_path, pack)
    assert read_results(reports, pack) == []
    reports.write_text(json.dumps({"pack": pack, "results": [{"epoch": 1}]}))
    assert read_results(reports, pack) == [{"epoch": 1}]
    assert read_results(reports, [Entry(5, {"train.lr": 0.2})]) == []


def test_a_sweep_of_nothing_but_failures_is_an_error_that_leaves_a_table(output: Path) -> None:
    with pytest.raises(StageError, match=r"all 2 trials of .* failed; see .*trials\.csv"):
        sweep.run(config(output, {ALPHA: [1e38, 1e37], "train.optimizer": ["sgd"]}))


def test_optuna_chooses_within_the_space_and_asha_stops_weak_trials(output: Path) -> None:
    space = {ALPHA: "0.01..1", DIM: [4, 8], "train.lr": [1e-3, 1e-2], "train.batch_size": "8..16"}
    report = sweep.run(config(output, space, search="optuna", trials=5, epochs=4, asha=True))
    assert len(report["trials"]) == 5
    for row in report["trials"]:
        assert 0.01 <= row[ALPHA] <= 1
        assert row[DIM] in (4, 8)
        assert row["train.batch_size"] in range(8, 17)
        assert 2 <= row["epochs"] <= 4
    found = runs(output, report["name"])
    assert len(found) == 6
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    again = sweep.run(config(output, space, search="optuna", trials=5, epochs=4, asha=True))
    assert again["trials"] == report["trials"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"workers": 2}}, "sweep.concurrency"),
        ({"train": {"val_fraction": 0}}, "val-fraction must be above 0"),
        ({"sweep": {"space": {"train.lr": [0]}}}, "train.lr: input should be greater than 0"),
    ],
)
def test_what_cannot_be_swept_is_said_before_any_work(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        sweep.run(settings(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


EPOCHS = 50


def command(output: Path, *words: str) -> subprocess.Popen[str]:
    """A sweep long enough to be killed: four trials in two packs."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "pipeline.sweep", "--backbone", TOY, "--output", str(output),
            "--device", "cpu", "--extract.limit", "48", "--extract.shard-size", "16",
            "--train.val-fraction", "0.25", "--train.batch-size", "1", "--epochs", str(EPOCHS),
            "--space", "dclip.mfi_weight=0.1,1,seed=0,1", "--concurrency", "2", "--json", *words,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def logged(output: Path) -> dict[str, int]:
    """Epochs that MLflow holds of each trial of the one sweep of a folder."""
    try:
        with closing(sqlite3.connect(output / "mlflow.db")) as base:
            rows = base.execute(
                "select t.value, count(*) from tags t join metrics m on m.run_uuid = t.run_uuid "
                "where t.key = 'dclip.key' and m.key = 'train/loss' group by t.value"
            )
            return dict(rows.fetchall())
    except sqlite3.OperationalError:  # not made yet, or being written
        return {}


def finished(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1]), errors


def test_a_sweep_that_loses_a_worker_and_its_driver_has_no_run_or_epoch_too_many(
    output: Path, tmp_path: Path
) -> None:
    (tmp_path / "features").symlink_to(output / "features")
    process = command(tmp_path)
    # whichever worker is hit has epochs to go on after
    wait_for(process, lambda: len(found := logged(tmp_path)) == 4 and min(found.values()) >= 3)
    workers = workers_below(process.pid, "ImplicitFunc")
    assert workers
    workers[0].kill()
    before = logged(tmp_path)
    wait_for(process, lambda: all(n > before[key] + 1 for key, n in logged(tmp_path).items()))
    os.killpg(process.pid, signal.SIGKILL)
    assert "went on after epoch" in process.communicate()[1]
    before = logged(tmp_path)
    assert min(before.values()) < EPOCHS
    report, errors = finished(command(tmp_path))
    resumed = [int(line.rsplit(" ", 1)[1]) for line in errors.splitlines() if "went on" in line]
    assert max(resumed) >= max(n for n in before.values() if n < EPOCHS) - 1
    found = runs(tmp_path, report["name"])
    assert len(found) == 5
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for key, run in found.items():
        if "/" in key:
            assert steps(tmp_path, run) == list(range(1, EPOCHS + 1))
    assert report["failed"] == 0
    calm = tmp_path / "calm"
    calm.mkdir()
    (calm / "features").symlink_to(output / "features")
    space = {ALPHA: [0.1, 1.0], "seed": [0, 1]}
    train = {"val_fraction": 0.25, "batch_size": 1}
    undisturbed = config(calm, space, epochs=EPOCHS, concurrency=2)
    undisturbed = with_train(undisturbed, **train, output_dim=None)
    assert sweep.run(undisturbed)["trials"] == report["trials"]
