"""Runs reach MLflow whole: with a server that is killed and comes back, or a locked file."""

import http.server
import json
import logging
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
import numpy as np
import pytest

from pipeline.records.tracking import Tracker, upload_pending
from pipeline.settings.config import Config
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError
from pipeline.terminal.moved import follow_folder

from ..conftest import TOY, MlflowServer
from .test_checkpoints import CLASSES, DIM, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # MLflow leaves sockets and files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cli._QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs; MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def output(tmp_path: Path, new_store: Path) -> Path:
    """An output folder with a store."""
    shutil.copy(new_store, tmp_path)
    return tmp_path


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


def test_runs_of_points_that_a_search_took_back_are_marked(output: Path, file: Path) -> None:
    config = Config(output=output, experiment="search")
    record(config, file)
    Tracker(config).retire("p", ["p/0", "p/2"])
    rows = contents(f"sqlite:///{output / 'mlflow.db'}", "search")
    states = {row["name"]: row["status"] for row in rows}
    assert states.pop("child 1") == "KILLED"
    assert set(states.values()) == {"FINISHED"}
    (taken_back,) = [row for row in rows if row["name"] == "child 1"]
    assert "chose another point" in taken_back["tags"]["dclip.error"]


def test_steps_that_an_earlier_run_logged_are_not_logged_again(output: Path) -> None:
    config = Config(output=output)
    for first, last in ((1, 4), (3, 6)):
        with Tracker(config).run("train", key="k") as run:
            for step in range(first, last):
                run.metrics({"loss": float(step)}, step=step)
    (row,) = contents(f"sqlite:///{output / 'mlflow.db'}", "dclip-shapes")
    assert [step for step, _ in row["metrics"]["loss"]] == [1, 2, 3, 4, 5]


def test_a_locked_database_delays_the_record_and_loses_nothing(output: Path) -> None:
    config = Config(output=output)
    tracker = Tracker(config)
    with tracker.run("train", key="k") as run:
        other = sqlite3.connect(output / "mlflow.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        run.metrics({"loss": 1.0}, step=1)
        other.execute("ROLLBACK")
        other.close()
        run.metrics({"loss": 0.5}, step=2)
    (row,) = contents(f"sqlite:///{output / 'mlflow.db'}", "dclip-shapes")
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
    assert rows[1]["artifacts"] == ["checkpoint", "config.json"]
    assert "uploaded" not in train_again()


def store_of(output: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")


@pytest.fixture
def registered(tmp_path: Path, new_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Output folder of a run with a registered model, made in an empty working directory."""
    output = Path("out puts")
    (tmp_path / "work" / output).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    shutil.copy(new_store, output)
    write(output / "a.safetensors")
    with Tracker(Config(output=output)).run("sweep", key="it's") as run:
        run.metrics({"val/map": 0.5})
        run.text("{}", "config.json")
        run.register("dclip-shapes", output / "a.safetensors", key="it's", tags={"val_map": "0.5"})
    return tmp_path / "work" / output


@pytest.fixture
def _global_store(registered: Path) -> Iterator[None]:
    """MLflow's own functions know a store by its global setting alone."""
    yield
    mlflow.set_tracking_uri(None)


def test_nothing_is_written_but_the_output_folder(registered: Path) -> None:
    assert [path.name for path in registered.parent.iterdir()] == [registered.name]
    assert not [path.name for path in registered.iterdir() if path.name == "mlruns"]


def test_the_run_shows_its_model_in_its_own_experiment(registered: Path) -> None:
    store = store_of(registered)
    (version,) = store.search_model_versions("name = 'dclip-shapes'")
    run = store.get_run(version.run_id)
    (output,) = run.outputs.model_outputs
    model = store.get_logged_model(output.model_id)
    assert model.experiment_id == run.info.experiment_id != "0"
    assert model.source_run_id == run.info.run_id
    assert unquote(model.artifact_location).startswith(f"file://{registered}/mlartifacts/")
    assert (Path(unquote(model.artifact_location)[7:]) / "MLmodel").is_file()
    # registered once, however often the sweep is run again
    with Tracker(Config(output=registered)).run("sweep", key="it's") as again:
        again.register("dclip-shapes", registered / "a.safetensors", key="it's", tags={})
    assert len(store.search_model_versions("name = 'dclip-shapes'")) == 1


@pytest.mark.usefixtures("_global_store")
def test_the_registered_model_predicts_arrays_here_and_over_http(registered: Path) -> None:
    import mlflow.pyfunc
    import mlflow.pytorch
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    mlflow.set_tracking_uri(f"sqlite:///{registered / 'mlflow.db'}")
    uri = "models:/dclip-shapes@best"
    local = np.random.default_rng(0).normal(size=(3, 5, DIM)).astype("float32")
    model = mlflow.pyfunc.load_model(uri)
    found = model.predict(local)
    assert found.shape == (3, len(CLASSES))
    assert ((found > 0) & (found < 1)).all()
    import torch

    direct = mlflow.pytorch.load_model(uri)(torch.from_numpy(local))
    np.testing.assert_allclose(found, direct.detach().numpy(), rtol=1e-5)
    with TestClient(init(model)) as client:
        answer = client.post("/invocations", json={"inputs": local.tolist()})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["predictions"], found, rtol=1e-5)


@pytest.mark.usefixtures("_global_store")
@pytest.mark.parametrize("is_copied", [False, True], ids=["moved", "copied"])
def test_a_folder_that_was_moved_takes_its_models_and_runs_along(
    registered: Path, tmp_path: Path, is_copied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    new = tmp_path / "else where" / "outputs"
    new.parent.mkdir()
    if is_copied:
        shutil.copytree(registered, new)
        shutil.rmtree(registered / "mlartifacts")
    else:
        registered.rename(new)
    caplog.set_level(logging.INFO, "pipeline")
    with Tracker(Config(output=new)).run("evaluate", key="e") as run:
        run.text("later", "later.txt")
    assert f"was moved here from {registered}" in caplog.text
    store = store_of(new)
    mlflow.set_tracking_uri(f"sqlite:///{new / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model("models:/dclip-shapes@best")
    assert loaded.predict(np.zeros((1, 2, DIM), "float32")).shape == (1, len(CLASSES))
    (version,) = store.search_model_versions("name = 'dclip-shapes'")
    names = [file.path for file in store.list_artifacts(version.run_id)]
    assert names == ["config.json"]
    assert registered.exists() == is_copied  # nothing is written where the folder was
    assert not (registered / "mlartifacts").exists()
    caplog.clear()
    Tracker(Config(output=new))
    assert not caplog.records


def test_artifacts_that_have_a_place_of_their_own_stay_there(
    tmp_path: Path, new_store: Path
) -> None:
    apart, output = tmp_path / "apart" / "mlartifacts", tmp_path / "outputs"
    apart.mkdir(parents=True)
    output.mkdir()
    shutil.copy(new_store, output)
    store = store_of(output)
    store.create_experiment("dclip-shapes", artifact_location=apart.as_uri())
    store.create_experiment("more", artifact_location="s3://bucket/mlartifacts")
    Tracker(Config(output=output))
    places = {found.name: found.artifact_location for found in store.search_experiments()}
    assert places["dclip-shapes"] == apart.as_uri()
    assert places["more"] == "s3://bucket/mlartifacts"


def test_a_journal_goes_along_with_its_folder(tmp_path: Path, new_store: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(new_store, old)
    tracker = Tracker(Config(output=old))
    kept = old / "kept.bin"
    kept.write_bytes(b"1")
    tracker.is_down = True
    run = tracker.open("train", key="k")
    run.artifact(kept)
    run.close()
    old.rename(new)
    upload_pending(Config(output=new))
    assert not list((new / "mlflow-pending").glob("*.jsonl"))
    (row,) = contents(f"sqlite:///{new / 'mlflow.db'}", "dclip-shapes")
    assert row["artifacts"] == ["kept.bin"]


KEYS = ["plain", "it's", 'say "hi"', "both ' and \"", "100%_x", "a''b", "a_b", "axb", "back\\slash"]


def test_keys_with_quotes_and_wildcards_find_their_own_run(output: Path) -> None:
    config = Config(output=output, experiment="it's")
    tracker = Tracker(config)
    numbers = [tracker.open(key, key=key).run_id for key in KEYS]
    assert len(set(numbers)) == len(KEYS)
    again = Tracker(config)
    assert [again.open(key, key=key).run_id for key in KEYS] == numbers


def test_a_journal_that_can_never_be_uploaded_is_set_aside_and_told(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(output=output)
    tracker = Tracker(config)
    tracker.is_down = True
    for key in ("a", "it's", "z"):
        tracker.open(key, key=key).close()
    opening = {"call": "open", "time": 0, "store": tracker.uri, "experiment": "dclip-shapes"}
    poison = {
        "refused": json.dumps({**opening, "experiment": "", "key": "r", "parent": None}),
        "short": json.dumps(opening),
        "text": '"these are my notes"',
        "empty": "",
        "events": json.dumps({**opening, "key": "v", "parent": None, "name": "v", "tags": {},
                              "goes_on": True}) + "\n5",
    }  # fmt: skip
    for name, content in poison.items():
        (config.pending / f"{name}.jsonl").write_text(content)
    gone = tracker.open("g", key="g")
    gone.register("dclip-shapes", output / "gone.safetensors", key="g", tags={})
    upload_pending(config)
    assert not list(config.pending.glob("*.jsonl"))
    assert {path.stem for path in config.pending.glob("*.refused")} == set(poison)
    assert all(f"{name}.jsonl" in caplog.text for name in poison)
    names = {row["name"] for row in contents(tracker.uri, "dclip-shapes")}
    assert names == {"a", "it's", "z", "g", "v"}
    assert "register is left out: no checkpoint at" in caplog.text


def test_more_children_than_a_page_are_all_there(output: Path) -> None:
    tracker = Tracker(Config(output=output))
    parent = tracker.open("p", key="p").run_id
    store = store_of(output)
    (experiment,) = [e for e in store.search_experiments() if e.name == "dclip-shapes"]
    first = store.create_run(experiment.experiment_id, 1, {"mlflow.parentRunId": parent})
    with sqlite3.connect(output / "mlflow.db") as database:  # 1,203 children, quickly
        columns = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
        values = ", ".join(f":{name}" for name in columns)
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM runs WHERE run_uuid = ?",
                                    (first.info.run_id,)).fetchone())  # fmt: skip
        for number in range(1202):
            new = {**row, "run_uuid": f"{number:032x}", "start_time": number + 2}
            database.execute(f"INSERT INTO runs VALUES ({values})", new)
            tags = (("mlflow.parentRunId", parent), ("dclip.key", f"p/{number}"))
            for key, value in tags:
                database.execute("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
                                 (key, value, new["run_uuid"]))  # fmt: skip
    database.close()
    store.log_metric(f"{7:032x}", "val/map", 0.9)
    store.log_metric(f"{8:032x}", "val/map", 0.8)
    children = tracker.children("p")
    assert children == [first.info.run_id, *(f"{number:032x}" for number in range(1202))]
    best = tracker.children("p", best_by="val/map")
    assert best[:2] == [f"{7:032x}", f"{8:032x}"]
    assert set(best) == set(children)
    url, shown = tracker.compare_url(best)
    assert len(url) <= 8000
    assert 100 < shown < len(best)
    assert all(number in url for number in best[:shown])
    assert best[shown] not in url
    tracker.retire("p", [f"p/{number}" for number in range(1200)])
    killed = store.search_runs([experiment.experiment_id], "attributes.status = 'KILLED'")
    assert {run.info.run_id for run in killed} == {f"{number:032x}" for number in (1200, 1201)}


def test_what_is_printed_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    output = tmp_path / "it's (here) & there"
    tracker = Tracker(Config(output=output))
    words = shlex.split(tracker.ui_command)
    assert words == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{output / 'mlflow.db'}"]
    assert tracker.experiment_url() == "http://127.0.0.1:5000/#/experiments/1/runs"


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server of MLflow that knows one experiment and refuses what it is told to."""

    reads, writes = 200, 200

    def do_GET(self) -> None:
        found = {"experiment": {"experiment_id": "7", "name": "e", "lifecycle_stage": "active"}}
        self._answer(self.reads, found)

    def do_POST(self) -> None:
        is_read = self.path.endswith("/search")
        self._answer(self.reads if is_read else self.writes, {"runs": []})

    def _answer(self, status: int, found: dict[str, Any]) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps(found).encode()
        if status == 401:
            body = b"You are not authenticated. Please see the documentation"
        elif status == 403:
            body = b"Permission denied"  # as MLflow's basic-auth app says it
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Refusing]]:
    handler = type("Handler", (Refusing,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


def test_wrong_credentials_are_told_at_once(refusing: type[Refusing], tmp_path: Path) -> None:
    refusing.reads = 401
    with pytest.raises(StageError, match=r"set MLFLOW_TRACKING_USERNAME") as error:
        Tracker(Config(output=tmp_path, experiment="e"))
    assert "\n" not in str(error.value)
    assert "start the server" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_user_who_may_only_read_is_told_so_and_loses_nothing(
    refusing: type[Refusing], tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(output=tmp_path, experiment="e")
    refusing.writes = status
    with Tracker(config).run("train", key="k") as run:
        run.metrics({"loss": 1.0}, step=1)
    assert "does not let us write" in caplog.text
    assert "does not answer" not in caplog.text
    assert ("ask for the permission EDIT" in caplog.text) == (status == 403)
    (journal,) = config.pending.glob("*.jsonl")
    assert '"loss": 1.0' in journal.read_text()


def test_a_store_that_cannot_be_changed_is_told_and_stays_whole(
    registered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = registered.rename(tmp_path / "outputs")
    (new / "notes").mkdir()
    (new / "notes" / "mlflow.db").write_text("these are my notes")
    follow_folder(new / "notes")  # told by whoever uses it
    with sqlite3.connect(new / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER no BEFORE UPDATE ON model_versions BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        before = database.execute("SELECT artifact_uri FROM runs").fetchall()
    database.close()
    follow_folder(new)
    assert f"moved here from {registered}, but its store cannot be changed (no)" in caplog.text
    with sqlite3.connect(new / "mlflow.db") as database:
        assert database.execute("SELECT artifact_uri FROM runs").fetchall() == before
    database.close()


def test_a_run_lasts_as_long_as_its_work(output: Path) -> None:
    """Also where it is recorded after the work: 90 s here."""
    tracker = Tracker(Config(output=output))
    with tracker.run("extract train", key="a", seconds=90.0) as tracked:
        pass
    assert tracked.run_id is not None
    info = store_of(output).get_run(tracked.run_id).info
    assert info.end_time - info.start_time >= 90_000
