"""Reports: found again where they are whole and of the same identity, made again otherwise."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.records.report import (
    FILE,
    Record,
    Recorded,
    StageReport,
    record,
    remarks,
    standing,
    write,
)
from pipeline.settings.config import Config


@dataclass(frozen=True, kw_only=True)
class Counted(StageReport):
    """A report of one number."""

    stage = "count"
    left_out = frozenset({"error"})

    identity: str
    number: int
    parts: dict[str, float | None]
    mlflow: Recorded | None = None
    error: str | None = None


REPORT = Counted(
    identity="abc",
    number=3,
    parts={"dog": 0.5, "cat": None},
    mlflow=Recorded("sqlite:///a", "mine", None, "mlflow ui", "http://here"),
)


def test_json_has_the_stage_first_and_fields_in_their_order() -> None:
    content = REPORT.to_json()
    assert list(content) == ["stage", "identity", "number", "parts", "mlflow"]
    assert content["stage"] == "count"
    assert list(content["mlflow"]) == ["uri", "experiment", "run_id", "command", "url"]
    failed = Counted(identity="a", number=0, parts={}, error="no")
    assert list(failed.to_json())[-2:] == ["mlflow", "error"]  # None is left out where it is said


def test_a_report_that_stands_is_the_one_that_was_written(tmp_path: Path) -> None:
    assert standing(tmp_path / "a", Counted, "abc") is None
    path = write(tmp_path / "a", REPORT)
    assert path == tmp_path / "a" / FILE
    assert standing(tmp_path / "a", Counted, "abc") == REPORT
    assert standing(tmp_path / "a", Counted, "abd") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'"abc"',
        b'{"identity": "abc"}',
        json.dumps({**REPORT.to_json(), "number": "many"}).encode(),
        json.dumps({**REPORT.to_json(), "parts": [1, 2]}).encode(),
        json.dumps({**REPORT.to_json(), "mlflow": {"uri": "x"}}).encode(),
        json.dumps(REPORT.to_json()).encode()[:-9],
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_what_is_no_whole_report_does_not_stand(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert standing(tmp_path, Counted, "abc") is None


def test_warnings_come_before_notes() -> None:
    assert remarks(["hot", "wet"], ["so it is"]) == [
        "warning: hot", "warning: wet", "note: so it is",
    ]  # fmt: skip


def test_mlflow_has_what_is_recorded_and_not_twice(tmp_path: Path) -> None:
    import mlflow

    config = Config(output=tmp_path, experiment="mine")
    path = write(tmp_path / "a", REPORT)
    what = Record(
        label="count", key="count-abc", tags={"dclip.stage": "count"}, seconds=1.0,
        params={"of": "dogs"}, metrics={"number": 3.0, "other": None}, files=[path],
        figures=[path], texts={"said.txt": "so"},
    )  # fmt: skip
    first = record(config, what)
    assert first.is_of(config)
    assert not first.is_of(config.model_copy(update={"experiment": "another"}))
    assert first.lines()[0] == f"look at them in MLflow: {first.command}"
    assert record(config, what).run_id == first.run_id
    store = mlflow.MlflowClient(config.own_store)
    run = store.get_run(first.run_id)
    assert run.data.metrics == {"number": 3.0}
    assert run.data.params == {"of": "dogs"}
    assert len(store.get_metric_history(first.run_id, "number")) == 1
    kept = {file.path for file in store.list_artifacts(first.run_id)}
    assert kept == {FILE, "figures", "said.txt"}
