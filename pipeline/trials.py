"""What Ray Tune runs and calls back: the trial, and the one writer of its MLflow run."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from dclip.batches import hold_out
from dclip.training import EpochReport, fit
from pipeline.checkpoints import read_state, write_state
from pipeline.config import Config, TrainConfig
from pipeline.features import open_features
from pipeline.progress import Progress
from pipeline.tracking import TrackedRun, Tracker, flat
from pipeline.train import STATE, begin, metric_names

POINT = "point"


def trial(space: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """One trial: train at one point of the space, report each epoch, go on after a restore.

    Args:
        space: ``{"point": {...}}``, the fields of the recipe this trial replaces.
        settings: ``train`` (recipe fields), ``features`` (folder), ``seed``, ``device``.

    Raises:
        DivergenceError: The loss left the finite numbers; Tune records the trial as failed.
    """
    config = TrainConfig.model_validate({**settings["train"], **space[POINT]})
    reader = open_features(settings["features"], Path(settings["output"]), verify=False)
    training = begin(config, reader, seed=settings["seed"], device=settings["device"])
    rows, val_rows = hold_out(len(reader), config.val_fraction, seed=settings["seed"])
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            read_state(Path(directory) / STATE, training)

    def on_epoch(reports: list[EpochReport]) -> None:
        (report,) = reports
        if math.isnan(report.val_map):
            raise ValueError(
                "none of the held-out images has a class to compare trials by; raise"
                " --train.val-fraction"
            )
        with tempfile.TemporaryDirectory() as directory:
            write_state(Path(directory) / STATE, training)
            tune.report(report._asdict(), checkpoint=tune.Checkpoint.from_directory(directory))

    fit(training, reader, rows, seed=settings["seed"], val_rows=val_rows, on_epoch=on_epoch)


class TrialRuns(tune.Callback):  # type: ignore[misc]
    """Writes one MLflow child run a trial, from the driver; finds it again after a restore.

    Args:
        config: Settings of the sweep; a restored sweep opens the store anew from them.
        sweep: Name of the sweep and key of its run; with a trial's id it identifies the child run.
        tracker: The store; left out: opened at first use.
    """

    def __init__(self, config: Config, sweep: str, tracker: Tracker | None = None) -> None:
        self.config, self.sweep, self.tracker = config, sweep, tracker
        self.bar: Progress | None = None
        self._runs: dict[str, TrackedRun] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "sweep": self.sweep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Open the trial's run."""
        self._run(trial)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Log one epoch, unless it was logged before an interruption."""
        line = {name: result[name] for name in EpochReport._fields}
        self._run(trial).metrics(metric_names(line), step=int(result["epoch"]))
        if self.bar is not None:
            best = f"trial {trial.trial_id}: val/map {100 * result['val_map']:.1f} %"
            self.bar.advance(1, best)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Close the run as finished."""
        self._run(trial).close()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Close the run as failed."""
        self._run(trial).close("FAILED")

    def _run(self, trial: Trial) -> TrackedRun:
        if trial.trial_id not in self._runs:
            self.tracker = self.tracker or Tracker(self.config)
            point = trial.config[POINT]
            run = self.tracker.open(
                " ".join(f"{name}={value:g}" for name, value in point.items()),
                key=f"{self.sweep}/{trial.trial_id}",
                parent=self.sweep,
                tags={"dclip.stage": "trial", "dclip.sweep_id": self.sweep},
            )
            recipe = {**self.config.train.model_dump(), "epochs": self.config.sweep.epochs, **point}
            run.params({**flat(recipe, "train."), "seed": self.config.seed})
            self._runs[trial.trial_id] = run
        return self._runs[trial.trial_id]
