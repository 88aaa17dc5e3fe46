"""Runs reach MLflow whole: with a server that is killed and comes back, or a locked file."""

import json
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline import cli
from pipeline.config import Config
from pipeline.errors import StageError
from pipeline.tracking import Tracker, upload_pending

from .conftest import TOY, MlflowServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # MLflow leaves sockets and files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cli._QUIET.items():
        monkeypatch.setenv(name, value)


def contents(uri: str, experiment: str) -> list[dict[str, Any]]:
    """All that an experiment holds, but for ids and times."""
    store = mlflow.MlflowClient(uri)
    found = store.get_experiment_by_name(experiment)
    assert found is not None
    runs = store.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])
    names = {run.info.run_id: run.info.run_name for run in runs}
    rows = []
    for run in runs:
        number = run.info.run_id
        tags = dict(run.data.tags)
        parent = tags.pop("mlflow.parentRunId", None)
        rows.append(
            {
                "name": run.info.run_name,
                "status": run.info.status,
                "parent": names.get(parent),
                "tags": tags,
                "params": run.data.params,
                "metrics": {
                    name: [(m.step, m.value) for m in store.get_metric_history(number, name)]
                    for name in sorted(run.data.metrics)
                },
                "inputs": [entry.dataset.name for entry in run.inputs.dataset_inputs],
                "artifacts": sorted(file.path for file in store.list_artifacts(number)),
            }
        )
    return rows


def record(config: Config, file: Path, disturb: Any = None) -> None:
    """A parent and two children of six epochs; ``disturb`` is called after the third."""
    tracker = Tracker(config)
    with tracker.run("parent", key="p", tags={"dclip.stage": "sweep"}) as parent:
        parent.params({"lr": 0.1})
        children = [tracker.open(f"child {i}", key=f"p/{i}", parent="p") for i in range(2)]
        for step in range(1, 7):
            for child in children:
                child.metrics({"val/map": step / 10, "asl": float("nan")}, step=step)
            if step == 3 and disturb is not None:
                disturb()
        late = tracker.open("child 2", key="p/2", parent="p")
        late.dataset("shapes-train", Path("/features"), "0" * 64, "training")
        for child in [*children, late]:
            child.close()
        parent.artifact(file, "projectors")
        parent.text("{}", "config.json")
        parent.metrics({"best": 0.6})
        parent.tags({"note": "done"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(b"123")
    return path


def test_a_server_killed_and_started_again_holds_what_an_undisturbed_run_leaves(
    mlflow_server: MlflowServer, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    record(Config(output=tmp_path, experiment="calm"), file)
    config = Config(output=tmp_path, experiment="storm")
    with caplog.at_level(logging.INFO, "pipeline"):
        record(config, file, disturb=mlflow_server.kill)
    lines = [r.message for r in caplog.records if "does not answer" in r.message]
    assert len([line for line in lines if "still" not in line]) == 1
    assert str(config.pending) in lines[0]
    journals = list(config.pending.glob("*.jsonl"))
    assert len(journals) == 4
    kept = {path: path.read_bytes() for path in journals}
    journals[0].write_bytes(kept[journals[0]] + b'\n{"call": "metr')  # a kill while writing
    mlflow_server.start()
    upload_pending(config)
    assert not list(config.pending.glob("*.jsonl"))
    calm = contents(mlflow_server.uri, "calm")
    assert len(calm) == 4
    assert contents(mlflow_server.uri, "storm") == calm
    # an upload that was killed before it deleted its journals does no harm when repeated
    for path, content in kept.items():
        path.write_bytes(content)
    upload_pending(config)
    assert contents(mlflow_server.uri, "storm") == calm


def test_a_server_that_is_back_at_the_end_needs_no_further_command(
    mlflow_server: MlflowServer, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    config = Config(output=tmp_path, experiment="back")
    tracker = Tracker(config)
    with tracker.run("one", key="k") as run:
        run.metrics({"loss": 1.0}, step=1)
        mlflow_server.kill()
        run.metrics({"loss": 0.5}, step=2)
        mlflow_server.start()
        run.metrics({"loss": 0.2}, step=3)
    (row,) = contents(mlflow_server.uri, "back")
    assert row["metrics"]["loss"] == [(1, 1.0), (2, 0.5), (3, 0.2)]
    assert row["status"] == "FINISHED"


def test_runs_of_points_that_a_search_took_back_are_marked(tmp_path: Path, file: Path) -> None:
    config = Config(output=tmp_path, experiment="search")
    record(config, file)
    Tracker(config).retire("p", ["p/0", "p/2"])
    rows = contents(f"sqlite:///{tmp_path / 'mlflow.db'}", "search")
    states = {row["name"]: row["status"] for row in rows}
    assert states.pop("child 1") == "KILLED"
    assert set(states.values()) == {"FINISHED"}
    (taken_back,) = [row for row in rows if row["name"] == "child 1"]
    assert "chose another point" in taken_back["tags"]["dclip.error"]


def test_steps_that_an_earlier_run_logged_are_not_logged_again(tmp_path: Path) -> None:
    config = Config(output=tmp_path)
    for first, last in ((1, 4), (3, 6)):
        with Tracker(config).run("train", key="k") as run:
            for step in range(first, last):
                run.metrics({"loss": float(step)}, step=step)
    (row,) = contents(f"sqlite:///{tmp_path / 'mlflow.db'}", "dclip-shapes")
    assert [step for step, _ in row["metrics"]["loss"]] == [1, 2, 3, 4, 5]


def test_a_locked_database_delays_the_record_and_loses_nothing(tmp_path: Path) -> None:
    config = Config(output=tmp_path)
    tracker = Tracker(config)
    with tracker.run("train", key="k") as run:
        other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        run.metrics({"loss": 1.0}, step=1)
        other.execute("ROLLBACK")
        other.close()
        run.metrics({"loss": 0.5}, step=2)
    (row,) = contents(f"sqlite:///{tmp_path / 'mlflow.db'}", "dclip-shapes")
    assert row["metrics"]["loss"] == [(1, 1.0), (2, 0.5)]
    assert not list(config.pending.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (None, "not an SQLite database; move it away"),
        ("htp://localhost", "unsupported URI"),
        ("http://127.0.0.1:99999", "Invalid url"),
    ],
    ids=["foreign file", "scheme", "port"],
)
def test_a_store_that_can_never_work_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None, words: str
) -> None:
    (tmp_path / "mlflow.db").write_text("these are my notes")
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StageError, match=words):
        Tracker(Config(output=tmp_path))


def test_records_of_another_store_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(output=tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    with Tracker(config).run("train", key="k") as run:
        run.metrics({"loss": 1.0}, step=1)
        assert run.run_id is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    upload_pending(config)
    assert len(list(config.pending.glob("*.jsonl"))) == 1


@pytest.mark.usefixtures("_toy_on_path")
def test_training_goes_on_without_a_server_and_the_next_command_uploads_its_record(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    settings = [
        "--backbone", TOY, "--device", "cpu", "--output", str(tmp_path), "--extract.limit", "48",
        "--train.epochs", "3", "--experiment", "away",
    ]  # fmt: skip

    def stage(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"pipeline.{name}", *settings, *words],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip

    def train_again() -> str:
        assert cli.main("train", settings) == 0
        return capsys.readouterr().err

    mlflow_server.kill()
    extracted = stage("extract", "--extract.split", "train")
    trained = stage("train", "--json")
    mlflow_server.start()
    for process in (extracted, trained):
        assert "does not answer ([Errno 111] Connection refused); the work goes on" in (
            process.stderr
        )
    assert Path(json.loads(trained.stdout.splitlines()[-1])["checkpoint"]).is_file()
    assert "mlflow: uploaded 2 run(s)" in train_again()
    rows = contents(mlflow_server.uri, "away")
    assert [row["name"].split(" ")[0] for row in rows] == ["extract", "dclip"]
    assert [step for step, _ in rows[1]["metrics"]["val/map"]] == [1, 2, 3]
    assert rows[1]["artifacts"] == ["config.json", "projectors"]
    assert "uploaded" not in train_again()
