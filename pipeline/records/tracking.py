"""MLflow: one store, runs that are found again instead of repeated, a journal while it is down.

No other file imports it. What a store that does not answer cannot take is kept in
``<output>/mlflow-pending/``, one file a run, and uploaded when it answers again.
"""

import hashlib
import json
import logging
import os
import re
import shlex
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.exc import SQLAlchemyError

from dclip.checkpoints.origin import CheckpointError
from dclip.provenance import git_commit
from dclip.store.paths import AnyPath, write_text
from dclip.words import told
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError
from pipeline.terminal.moved import follow_folder, old_output, place_in

log = logging.getLogger(__name__)

T = TypeVar("T")

KEY = "dclip.key"
# a server that is away, an SQLite file that is locked, a disk that is full
_TROUBLE = (MlflowException, SQLAlchemyError, OSError)
# what a line that is no event of ours does to the code that reads it
_MALFORMED = (AttributeError, LookupError, TypeError, ValueError)
_REFUSALS = (400, 404)  # HTTP: trying again is no use
_FORBIDDEN = {  # HTTP: what to do before trying again
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    403: "ask for the permission EDIT on the experiment, or name one of yours with --experiment",
}
_LONGEST_URL = 8000  # characters that browsers and terminals take; about 190 runs

Event = dict[str, Any]
"""One call on a run, as a line of its journal: ``call``, ``time`` (ms) and what is logged."""


class _Store:
    """Calls on an MLflow store; each may be repeated without a second effect."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        self._uri, self._artifacts = uri, artifacts
        self._experiments: dict[str, str] = {}
        self._steps: dict[tuple[str, str], int] = {}
        self._new: set[str] = set()

    @cached_property
    def _client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri=self._uri)

    def experiment(self, name: str) -> str:
        """Id of an experiment, made if it is not there."""
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise MlflowException.invalid_parameter_value(
                    f"experiment {name!r} was deleted; restore it or give --experiment NAME"
                )
            self._experiments[name] = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(name, artifact_location=self._artifacts)
            )
        return self._experiments[name]

    def find(self, experiment: str, key: str) -> str | None:
        """Id of the run of a key."""
        for run in self._search(experiment, _is(f"tags.`{KEY}`", key)):
            if run.data.tags.get(KEY) == key:
                return str(run.info.run_id)
        return None

    def _search(self, experiment: str, where: str, order: str | None = None) -> Iterator[Run]:
        """All runs of an experiment that a filter finds, page by page."""
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment(experiment)],
                where,
                max_results=1000,
                order_by=[order] if order else None,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def open(self, event: Event) -> str:
        """Id of the run of the event's key; made if it is not there."""
        run_id = self.find(event["experiment"], event["key"])
        if run_id is not None:
            if event["goes_on"]:
                self._client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            return run_id
        tags = {**event["tags"], KEY: event["key"]}
        if event["parent"] is not None:
            parent = self.find(event["experiment"], event["parent"])
            if parent is not None:
                tags[MLFLOW_PARENT_RUN_ID] = parent
        run = self._client.create_run(
            self.experiment(event["experiment"]), event["time"], tags, event["name"]
        )
        new: str = run.info.run_id
        self._new.add(new)
        return new

    def children(self, experiment: str, parent: str, *, best_by: str | None = None) -> list[str]:
        """Ids of the runs below the run of a key, oldest first, or highest in a metric first."""
        order = f"metrics.`{best_by}` DESC" if best_by else "attributes.start_time ASC"
        return [run.info.run_id for run in self._below(experiment, parent, order)]

    def retire(self, experiment: str, parent: str, keys: Sequence[str]) -> None:
        """Mark runs below the run of a key that are of none of these as killed."""
        for run in self._below(experiment, parent):
            key = run.data.tags.get(KEY)  # None: a run of the user's own
            if key is not None and key not in keys:
                why = "the search was interrupted and then chose another point for this number"
                self._client.set_tag(run.info.run_id, "dclip.error", why)
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _below(
        self, experiment: str, parent: str, order: str = "attributes.start_time ASC"
    ) -> list[Run]:
        above = self.find(experiment, parent)
        where = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{above}'"
        return [] if above is None else list(self._search(experiment, where, order))

    def apply(self, run_id: str, event: Event) -> None:
        """Write one event of a run; one that the store refuses is left out, and said."""
        try:
            self._apply(run_id, event)
        except MlflowException as error:
            if _status(error) not in _REFUSALS:
                raise
            log.warning("mlflow: %s refuses %s: %s", self._uri, event["call"], _reason(error))
        except (StageError, CheckpointError) as error:  # of a file that is gone or damaged
            log.warning("mlflow: %s is left out: %s", event["call"], error)

    def _apply(self, run_id: str, event: Event) -> None:
        client, values = self._client, event.get("values", {})
        match event["call"]:
            case "metrics":
                self._metrics(run_id, event)
            case "params":
                batch = [Param(name, value) for name, value in values.items()]
                for start in range(0, len(batch), 100):
                    client.log_batch(run_id, params=batch[start : start + 100])
            case "tags":
                client.log_batch(run_id, tags=[RunTag(k, v) for k, v in values.items()])
            case "artifact":
                if Path(event["path"]).is_file():
                    client.log_artifact(run_id, event["path"], event["folder"])
                else:
                    log.warning("mlflow: %s is gone and is not uploaded", event["path"])
            case "text":
                client.log_text(run_id, event["text"], event["name"])
            case "dataset":
                source = json.dumps({"uri": event["uri"]})
                data = Dataset(event["name"], event["digest"], "local", source)
                tag = InputTag("mlflow.data.context", event["context"])
                client.log_inputs(run_id, [DatasetInput(data, [tag])])
            case "register":
                self._register(run_id, event)
            case "close":
                client.set_terminated(run_id, event["status"], event["time"])

    def _metrics(self, run_id: str, event: Event) -> None:
        step = event["step"]
        batch = []
        has_some = step is None and run_id not in self._new
        held = self._client.get_run(run_id).data.metrics if has_some else {}
        for name, value in event["values"].items():
            if held.get(name) != value if step is None else step > self._last_step(run_id, name):
                batch.append(Metric(name, value, event["time"], step or 0))
        self._client.log_batch(run_id, metrics=batch)
        if step is not None:
            self._steps |= {(run_id, metric.key): step for metric in batch}

    def version(self, name: str, key: str) -> str | None:
        """Number of a model's version of a key."""
        token = None
        while True:
            page = self._client.search_model_versions(_is("name", name), page_token=token)
            for version in page:
                if version.name == name and version.tags.get(KEY) == key:
                    return str(version.version)
            token = page.token
            if not token:
                return None

    def _register(self, run_id: str, event: Event) -> None:
        name, client = event["name"], self._client
        number = self.version(name, event["key"])
        if number is None:
            try:
                client.get_registered_model(name)
            except MlflowException as error:
                if _status(error) != 404:
                    raise
                client.create_registered_model(name)
            tags = {**event["tags"], KEY: event["key"]}
            model_id = _log_model(client, run_id, Path(event["path"]))
            with _default_store(self._uri):
                number = client.create_model_version(
                    name, f"models:/{model_id}", run_id, tags, model_id=model_id
                ).version
        words = event.get("description") or None  # None: of a journal of an earlier version
        if words and not client.get_model_version(name, number).description:
            client.update_model_version(name, number, words)
        model = client.get_registered_model(name)
        if int(number) > int(model.aliases.get("best", 0)):  # a repeated sweep displaces no later
            client.set_registered_model_alias(name, "best", number)
            if words:
                client.update_registered_model(name, words)

    def _last_step(self, run_id: str, name: str) -> int:
        """Latest step at which a metric was logged; 0 if it never was."""
        if (run_id, name) not in self._steps:
            history = () if run_id in self._new else self._client.get_metric_history(run_id, name)
            self._steps[run_id, name] = max((metric.step for metric in history), default=0)
        return self._steps[run_id, name]


class TrackedRun:
    """One MLflow run that is being written, in the store or, while that is down, in its journal."""

    def __init__(self, tracker: "Tracker", opening: Event) -> None:
        self._tracker, self._opening = tracker, opening
        self.run_id: str | None = tracker.attempt(lambda store: store.open(opening))

    def metrics(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Log metrics; values that are not numbers are left out.

        With a step, so are steps up to the last one that the store has, which an earlier run
        logged before it was stopped; without one, values that the run has already.
        """
        numbers = {name: float(value) for name, value in values.items() if value == value}
        self._do("metrics", values=numbers, step=step)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters."""
        self._do("params", values={name: str(value)[:6000] for name, value in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._do("tags", values=dict(values))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts; one that waits for the store must stay in place."""
        self._do("artifact", path=str(path), folder=folder)

    def text(self, text: str, name: str) -> None:
        """Store a text as an artifact."""
        self._do("text", text=text, name=name)

    def dataset(self, name: str, folder: AnyPath, digest: str, context: str) -> None:
        """Record which features the run read, by the digest of their manifest."""
        uri = folder.as_uri() if isinstance(folder, Path) else str(folder)
        self._do("dataset", name=name, uri=uri, digest=digest[:36], context=context)

    def register(
        self,
        name: str,
        checkpoint: Path,
        *,
        key: str,
        tags: Mapping[str, str],
        description: str = "",
    ) -> None:
        """Register a checkpoint as a version of a model; the newest has the alias ``best``.

        Args:
            name: Name of the model.
            checkpoint: File of the checkpoint.
            key: What identifies the version among those of the model: it is registered once.
            tags: Tags of the version.
            description: What MLflow shows of the version, and of the model while it is the best.
        """
        self._do(
            "register",
            name=name,
            path=str(checkpoint),
            key=key,
            tags=dict(tags),
            description=description,
        )

    def close(self, status: str = "FINISHED") -> None:
        """End the run."""
        self._do("close", status=status)

    def _do(self, call: str, **what: Any) -> None:
        event = {"call": call, "time": _now(), **what}

        def apply(store: _Store) -> bool:
            if self.run_id is None:  # opened while the store was down
                self.run_id = store.open(self._opening)
            store.apply(self.run_id, event)
            return True

        if not self._tracker.attempt(apply):
            _append(self._tracker.pending, self._opening, event)


class Tracker:
    """The MLflow store and experiment of the settings.

    ``MLFLOW_TRACKING_URI`` is honoured; without it the store is an SQLite file in the output
    folder, with artifacts beside it. A store that does not answer stops nothing: the first
    failure is said in one line, everything from then on goes into journals, and the end of the
    run, or else the next command with this output folder, uploads them.

    Raises:
        StageError: The store refuses: a wrong URI, a deleted experiment, a file of another kind.
    """

    def __init__(self, config: Config) -> None:
        for name in ("alembic", "mlflow", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are told once, below
        output = config.output.absolute()
        output.mkdir(parents=True, exist_ok=True)
        self.pending = config.pending
        self.uri, self.experiment = config.tracking_uri, config.experiment_name
        self.is_down = False
        _check_file(self.uri)
        self._output = output if self.uri == config.own_store else None
        if self._output is not None:
            follow_folder(self._output)
        place = None if self._output is None else (output / "mlartifacts").as_uri()
        self._store = _Store(self.uri, place)
        try:
            self._store.experiment(self.experiment)
        except _TROUBLE as error:
            if 400 <= _status(error) < 500:
                remedy = _FORBIDDEN.get(_status(error), "start the server")
                raise StageError(
                    f"cannot use the MLflow store {self.uri}: {_reason(error)}; {remedy}, "
                    "or unset MLFLOW_TRACKING_URI to use a local file"
                ) from None
            self._give_up(error)

    def attempt(self, work: Callable[[_Store], T]) -> T | None:
        """Result of a call on the store; None if the store is down, or goes down at this call."""
        if self.is_down:
            return None
        try:
            return work(self._store)
        except _TROUBLE as error:
            self._give_up(error)
            return None

    def open(
        self,
        name: str,
        *,
        key: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        goes_on: bool = True,
        seconds: float = 0.0,
    ) -> TrackedRun:
        """Start a run, or go on with the unfinished or earlier one of the same key.

        Args:
            name: Name shown.
            key: What identifies the run in its experiment.
            parent: Key of the run it is a child of.
            tags: Tags of a new run.
            goes_on: Whether a run that is there is running again; otherwise it is only added to.
            seconds: How long its work has taken already, for the duration of a new run.
        """
        labels = {"mlflow.source.git.commit": (git_commit() or "").rstrip("+"), **(tags or {})}
        labels["mlflow.source.name"] = f"pipeline {labels.get('dclip.stage', name)}"
        opening = {
            "call": "open",
            "time": _now() - round(1000 * seconds),
            "store": self.uri,
            "experiment": self.experiment,
            "name": name,
            "key": key,
            "parent": parent,
            "tags": labels,
            "goes_on": goes_on,
        }
        return TrackedRun(self, opening)

    @contextmanager
    def run(
        self,
        name: str,
        *,
        key: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ) -> Iterator[TrackedRun]:
        """A run that is closed at the end of the block: FINISHED, FAILED, or KILLED by the user.

        If the store went down meanwhile, it is asked once more at the end.
        """
        run = self.open(name, key=key, parent=parent, tags=tags, seconds=seconds)
        try:
            yield run
        except KeyboardInterrupt:
            run.close("KILLED")
            raise
        except BaseException:
            run.close("FAILED")
            raise
        run.close()
        if self.is_down:
            self.upload()

    def upload(self) -> None:
        """Bring to the store what was kept while it was down; what is there already stays as is.

        A journal that the store refuses or that cannot be read is set aside under another name, so
        that it does not stand in the way of the others.
        """
        journals = []
        for path in self.pending.glob("*.jsonl"):
            try:
                opening = _read(path)[0]
                if self._is_for(opening["store"]):
                    journals.append((opening["time"], path))
            except _MALFORMED as error:
                _set_aside(path, f"is no journal ({told(error)})")
        if not journals:
            return
        done = 0
        try:
            with FileLock(self.pending / ".lock", timeout=0):
                for _, path in sorted(journals):
                    done += self._replay(path)
        except Timeout:
            log.info("mlflow: another command is uploading what is kept in %s", self.pending)
            return
        except _TROUBLE as error:
            if _status(error) in _FORBIDDEN:
                self._give_up(error)
            else:
                log.warning("mlflow: %s still does not answer (%s)", self.uri, _reason(error))
            return
        self.is_down = False
        log.info("mlflow: uploaded %d run(s) that were kept in %s", done, self.pending)

    def _is_for(self, store: str) -> bool:
        """Whether a journal is for this store, where it is now or where it was."""
        if store == self.uri:
            return True
        return self._output is not None and old_output(store, self._output) is not None

    def _replay(self, path: Path) -> int:
        """Upload one journal and delete it; 1, or 0 where it is set aside."""
        while path.is_file():
            content = path.read_bytes()
            try:
                opening, *events = _read(path)
                old = self._output and old_output(opening["store"], self._output)
                run_id = self._store.open(opening)
                for event in events:
                    if old and "path" in event:
                        event["path"] = place_in(event["path"], old, str(self._output))
                    self._store.apply(run_id, event)
            except _TROUBLE as error:
                if _status(error) not in _REFUSALS:
                    raise
                return _set_aside(path, f"is refused by {self.uri}: {_reason(error)}")
            except _MALFORMED as error:
                return _set_aside(path, f"is no journal ({told(error)})")
            if path.read_bytes() == content:  # else its run is still going on
                path.unlink()
        return 1

    def children(self, parent: str, *, best_by: str | None = None) -> list[str]:
        """Ids of the runs below the run of a key; none while the store is down.

        Args:
            parent: Key of the run above.
            best_by: Metric of which the highest comes first; without it the oldest does.
        """
        return (
            self.attempt(lambda store: store.children(self.experiment, parent, best_by=best_by))
            or []
        )

    def retire(self, parent: str, keys: Sequence[str]) -> None:
        """Mark runs below the run of a key that are of none of these as killed.

        A search that was killed may choose again, and differently, what it had begun last.
        """

        def apply(store: _Store) -> None:
            store.retire(self.experiment, parent, keys)

        self.attempt(apply)

    def model_uri(self, name: str, key: str) -> str | None:
        """Where MLflow loads the version of a key from; None if it is not registered (yet)."""
        version = self.attempt(lambda store: store.version(name, key))
        return version and f"models:/{name}/{version}"

    @property
    def ui_command(self) -> str:
        """Shell command that shows this store in a browser."""
        if self.uri.startswith(("http://", "https://")):
            return f"open {shlex.quote(self.uri)}"
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    def experiment_url(self) -> str:
        """Page of the experiment's runs, once the UI runs; of all experiments while it is down."""
        number = self.attempt(lambda store: store.experiment(self.experiment))
        return f"{self._ui}/#/experiments" + ("" if number is None else f"/{number}/runs")

    def compare_url(self, run_ids: Sequence[str]) -> tuple[str, int]:
        """Page that compares runs, parallel coordinates first, once the UI runs.

        Returns:
            The URL, and how many of the runs it names: the first ones, as far as its length allows.
        """
        number = self.attempt(lambda store: store.experiment(self.experiment))
        start = f"{self._ui}/#/compare-runs?runs="
        end = "&experiments=" + quote(f'["{number}"]', safe="")
        shown = len(run_ids)
        while True:
            named = quote(
                "[" + ",".join(f'"{run_id}"' for run_id in run_ids[:shown]) + "]", safe=""
            )
            if len(start + named + end) <= _LONGEST_URL or not shown:
                return start + named + end, shown
            shown -= 1

    @property
    def _ui(self) -> str:
        is_server = self.uri.startswith(("http://", "https://"))
        return self.uri.rstrip("/") if is_server else "http://127.0.0.1:5000"

    def _give_up(self, error: Exception) -> None:
        self.is_down = True
        status = _status(error)
        log.warning(
            "mlflow: %s %s (%s)%s; the work goes on, its record is kept in %s, and the "
            "next command with this output folder uploads it",
            self.uri,
            "does not let us write" if status in _FORBIDDEN else "does not answer",
            _reason(error),
            f"; {_FORBIDDEN[status]}" if status in _FORBIDDEN else "",
            self.pending,
        )


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """The store as MLflow's global setting, by which a local one finds a version's files."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # sets the variable, too
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets both


def _log_model(client: mlflow.MlflowClient, run_id: str, checkpoint: Path) -> str:
    """Store a checkpoint as a model of its run; its id.

    ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` answer photographs with it, by the
    checkpoint and `pipeline.serving.photographs`; one over a CLIP that is code of somebody's own,
    which a server cannot open, takes features instead. ``mlflow.pytorch.load_model`` gives a traced
    graph (pt2) from features to scores, whose batch size and number of locations are free. Nothing
    of it is a pickle.
    """
    import numpy as np
    import torch

    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # else the imports add one, by which our lines would come twice
    try:
        with warnings.catch_warnings(action="ignore"):  # of MLflow's own types
            import mlflow.pytorch
            from mlflow.models import Model, ModelSignature
            from mlflow.types import Schema, TensorSpec

            from pipeline.records.checkpoints import Scorer, load_checkpoint
            from pipeline.records.served import answer_photographs

            method, about = load_checkpoint(checkpoint)
            kind = np.dtype("float32")
            experiment = client.get_run(run_id).info.experiment_id
            logged = client.create_logged_model(experiment, "projectors", run_id)
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            with tempfile.TemporaryDirectory() as folder:
                mlflow.pytorch.save_model(
                    Scorer(method).eval(),
                    f"{folder}/model",
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        model_uuid=logged.model_id,
                        model_id=logged.model_id,
                        run_id=run_id,
                        metadata={
                            "class_names": about.class_names,
                            "feature_space": about.feature_space,
                        },
                    ),
                    input_example=np.zeros((2, 3, about.embed_dim), kind),
                    # without names: a tensor is given as it is, not as a column of a table
                    signature=ModelSignature(
                        Schema([TensorSpec(kind, (-1, -1, about.embed_dim))]),
                        Schema([TensorSpec(kind, (-1, len(about.class_names)))]),
                    ),
                    pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
                )
                if about.encoder is not None and ":" not in about.encoder.backbone:
                    answer_photographs(Path(folder) / "model", checkpoint)
                client.log_model_artifacts(logged.model_id, f"{folder}/model")
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    finally:
        root.removeHandler(silent)
    return str(logged.model_id)


def upload_pending(config: Config) -> None:
    """Upload what earlier commands with this output folder kept while the store was down."""
    tracker = Tracker(config)
    if not tracker.is_down:
        tracker.upload()


def _append(folder: Path, opening: Event, event: Event) -> None:
    """Add an event to the journal of its run, which begins with its opening."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{hashlib.sha256(opening['key'].encode()).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        write_text(path, json.dumps(opening))
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(event))  # first ends the line that a kill may have cut short


def _read(path: Path) -> list[Event]:
    """Events of a journal, its opening first; lines cut short by a kill are left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def _set_aside(path: Path, why: str) -> int:
    """Rename a journal that can never be uploaded, and say so; 0, the runs it brought."""
    aside = path.with_suffix(".refused")
    path.replace(aside)
    log.warning("mlflow: what was kept in %s %s; it is set aside as %s", path.name, why, aside)
    return 0


def _is(field: str, value: str) -> str:
    """Filter for a text. One with a quote is found roughly: compare what is found with it."""
    if "'" not in value:
        return f"{field} = '{value}'"
    return f"{field} LIKE '{value.replace(chr(39), '_')}'"  # any character for the quote


def _check_file(uri: str) -> None:
    """Refuse at once a file that is no database; MLflow would try it for minutes."""
    path = Path(uri.removeprefix("sqlite:///"))
    if path.is_file() and path.stat().st_size and path.read_bytes()[:16] != b"SQLite format 3\0":
        raise StageError(f"{path} is not an SQLite database; move it away, MLflow makes a new one")


def _status(error: Exception) -> int:
    """HTTP status of what the store answered; 500 where it did not."""
    if isinstance(error, InvalidUrlException):
        return 400
    if not isinstance(error, MlflowException):
        return 500
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]  # theirs
    return status


def _reason(error: Exception) -> str:
    """The gist of an error that MLflow wraps in paragraphs."""
    text = told(error)
    short = re.search(r"\[Errno -?\d+\] [\w ]+|timed out|database is locked|disk is full", text)
    return short[0] if short else text[:300]


def _now() -> int:
    return int(time.time() * 1000)
