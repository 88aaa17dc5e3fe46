"""MLflow: one store, runs that are found again instead of repeated. No other file imports it."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.config import Config
from pipeline.errors import StageError
from pipeline.provenance import git_commit

if TYPE_CHECKING:
    from dclip.paths import AnyPath

KEY = "dclip.key"


class TrackedRun:
    """One MLflow run that is being written."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics of one step; values that are not numbers are left out."""
        now = int(time.time() * 1000)
        batch = [
            Metric(name, float(value), now, step)
            for name, value in values.items()
            if value == value
        ]
        self._client.log_batch(self.run_id, metrics=batch)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters."""
        batch = [Param(name, str(value)[:6000]) for name, value in values.items()]
        for start in range(0, len(batch), 100):
            self._client.log_batch(self.run_id, params=batch[start : start + 100])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def text(self, text: str, name: str) -> None:
        """Store a text as an artifact."""
        self._client.log_text(self.run_id, text, name)

    def dataset(self, name: str, folder: "AnyPath", digest: str, context: str) -> None:
        """Record which features the run read, by the digest of their manifest."""
        source = json.dumps({"uri": folder.as_uri() if isinstance(folder, Path) else str(folder)})
        data = Dataset(name=name, digest=digest[:36], source_type="local", source=source)
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.run_id, [DatasetInput(data, [tag])])

    def last_step(self, name: str) -> int:
        """Latest step at which a metric was logged; 0 if it never was."""
        history = self._client.get_metric_history(self.run_id, name)
        return max((metric.step for metric in history), default=0)

    def close(self, status: str = "FINISHED") -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status)


class Tracker:
    """The MLflow store and experiment of the settings.

    ``MLFLOW_TRACKING_URI`` is honoured; without it the store is an SQLite file in the output
    folder, with artifacts beside it.

    Raises:
        StageError: The store cannot be reached.
    """

    def __init__(self, config: Config) -> None:
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        output = config.output.absolute()
        output.mkdir(parents=True, exist_ok=True)
        local = f"sqlite:///{output / 'mlflow.db'}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        name = config.experiment or f"dclip-{config.dataset_slug}"
        try:
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
            experiment = self._client.get_experiment_by_name(name)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                raise StageError(
                    f"MLflow experiment {name!r} was deleted; restore it or give --experiment NAME"
                )
            if experiment is None:
                place = (output / "mlartifacts").as_uri() if self.uri == local else None
                self.experiment_id = self._client.create_experiment(name, artifact_location=place)
            else:
                self.experiment_id = experiment.experiment_id
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise StageError(
                f"cannot use the MLflow store {self.uri}: {reason}; "
                "start the server, or unset MLFLOW_TRACKING_URI to use a local file"
            ) from None

    def open(
        self,
        name: str,
        *,
        key: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> TrackedRun:
        """Start a run, or go on with the unfinished or earlier one of the same key."""
        if key is not None:
            found = self._client.search_runs(
                [self.experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1
            )
            if found:
                run_id = found[0].info.run_id
                self._client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
                return TrackedRun(self._client, run_id)
        labels = {"mlflow.source.git.commit": (git_commit() or "").rstrip("+"), **(tags or {})}
        labels["mlflow.source.name"] = f"pipeline {labels.get('dclip.stage', name)}"
        if key is not None:
            labels[KEY] = key
        if parent is not None:
            labels[MLFLOW_PARENT_RUN_ID] = parent
        run = self._client.create_run(self.experiment_id, run_name=name, tags=labels)
        return TrackedRun(self._client, run.info.run_id)

    @contextmanager
    def run(
        self,
        name: str,
        *,
        key: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[TrackedRun]:
        """A run that is closed at the end of the block: FINISHED, FAILED, or KILLED by the user."""
        run = self.open(name, key=key, parent=parent, tags=tags)
        try:
            yield run
        except KeyboardInterrupt:
            run.close("KILLED")
            raise
        except BaseException:
            run.close("FAILED")
            raise
        run.close()

    def children(self, parent: str) -> list[str]:
        """Ids of the runs below a parent, oldest first."""
        found = self._client.search_runs(
            [self.experiment_id],
            f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
        )
        return [run.info.run_id for run in found]

    @property
    def ui_command(self) -> str:
        """Shell command that shows this store in a browser."""
        if self.uri.startswith(("http://", "https://")):
            return f"open {self.uri}"
        return f"mlflow ui --backend-store-uri {self.uri}"

    def experiment_url(self) -> str:
        """Page of the experiment, once the UI runs."""
        return f"{self._ui}/#/experiments/{self.experiment_id}"

    def compare_url(self, run_ids: Sequence[str]) -> str:
        """Page that compares runs, parallel coordinates first, once the UI runs."""
        quoted = quote("[" + ",".join(f'"{run_id}"' for run_id in run_ids) + "]", safe="")
        experiments = quote(f'["{self.experiment_id}"]', safe="")
        return f"{self._ui}/#/compare-runs?runs={quoted}&experiments={experiments}"

    @property
    def _ui(self) -> str:
        is_server = self.uri.startswith(("http://", "https://"))
        return self.uri.rstrip("/") if is_server else "http://127.0.0.1:5000"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
