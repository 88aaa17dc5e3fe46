"""The MLflow run of each trial of a sweep, which the driver writes as Tune calls back."""

import logging
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TunedPack

from dclip.store.shards import digest
from dclip.words import told
from pipeline.cluster import session as cluster
from pipeline.features.plan import FeaturePlan
from pipeline.records.tracking import TrackedRun, Tracker
from pipeline.records.trainings import metric_names, run_params
from pipeline.settings.config import Config
from pipeline.settings.space import SEED, Entry, label
from pipeline.settings.training import at
from pipeline.terminal.progress import Progress
from pipeline.work.trials import PACK, SCORE

log = logging.getLogger(__name__)


class TrialRuns(tune.Callback):  # type: ignore[misc]
    """Writes one MLflow child run a trial, from the driver; finds it again after a restore.

    Args:
        config: Settings of the sweep.
        plan: The features it trains on.
        sweep: Name of the sweep and key of its run; with a point's number it identifies the child.
        tracker: The store.
    """

    def __init__(self, config: Config, plan: FeaturePlan, sweep: str, tracker: Tracker) -> None:
        self.config, self.plan, self.sweep, self.tracker = config, plan, sweep, tracker
        self.bar: Progress | None = None
        self._runs: dict[int, TrackedRun] = {}
        self._closed: set[int] = set()
        self.apart: set[int] = set()
        self.may_have_failed = False  # before: runs that go on may tell of it
        self._resumed: dict[str, int] = {}
        self._epochs: dict[str, int] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune keeps callbacks with its state, but a restored sweep gets one of its own."""
        return tune.Callback, ()

    def on_trial_start(
        self, iteration: int, trials: list[TunedPack], trial: TunedPack, **info: Any
    ) -> None:
        """Open the runs of the pack."""
        for entry in self._pack(trial):
            self.run(entry)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TunedPack],
        trial: TunedPack,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Log one epoch of each point, unless it was logged before an interruption."""
        if "outcomes" not in result:  # it left its points to others
            return
        for entry, outcome in zip(self._pack(trial), result["outcomes"], strict=True):
            if outcome["error"]:
                self._fail(entry, outcome["error"])
                continue
            line = outcome["line"]
            self.run(entry).metrics(metric_names(line), step=int(line["epoch"]))
        if result["resumed"] > self._resumed.get(trial.trial_id, 0):
            self._resumed[trial.trial_id] = result["resumed"]
            log.info("sweep: trial %s went on after epoch %d", trial.trial_id, result["resumed"])
        self._epochs[trial.trial_id] = len(trial.config[PACK]) * result["epoch"]
        if self.bar is not None:
            best = f"trial {trial.trial_id}: val/map {100 * result[SCORE]:.1f} %"
            self.bar.show(sum(self._epochs.values()), best)

    def on_trial_complete(
        self, iteration: int, trials: list[TunedPack], trial: TunedPack, **info: Any
    ) -> None:
        """Close the runs of points that did not fail as finished."""
        for entry in self._pack(trial):
            self._close(entry, "FINISHED")

    def on_trial_error(
        self, iteration: int, trials: list[TunedPack], trial: TunedPack, **info: Any
    ) -> None:
        """Close the runs as failed: what the pack met is no result, but to be tried again."""
        error = trial.get_pickled_error() or trial.get_error()
        for entry in self._pack(trial):
            self._fail(entry, reason(error))

    def _pack(self, tuned: TunedPack) -> list[Entry]:
        """Points of a trial; none if each of them is now trained by itself."""
        pack = [Entry(*entry) for entry in tuned.config[PACK]]
        return [] if len(pack) > 1 and pack[0].number in self.apart else pack

    def part(self, entries: Sequence[Entry]) -> None:
        """Let points whose pack failed go on, each by itself."""
        self.apart |= {entry.number for entry in entries}
        self.may_have_failed |= bool(entries)
        for number in self.apart:
            self._runs.pop(number, None)
            self._closed.discard(number)

    def key(self, entry: Entry) -> str:
        """Key of the run of a point.

        A search that was restored from an older record may choose another point for a number; that
        one gets a run of its own.
        """
        if self.config.sweep.search != "optuna":
            return f"{self.sweep}/{entry.number}"
        return f"{self.sweep}/{entry.number}-{digest(entry.point)[:8]}"

    def run(self, entry: Entry, *, goes_on: bool = True) -> TrackedRun:
        """The run of a point, to go on with or only to add to (see :meth:`Tracker.open`)."""
        if entry.number not in self._runs:
            run = self.tracker.open(
                label(entry.point),
                key=self.key(entry),
                parent=self.sweep,
                tags={"dclip.stage": "trial", "dclip.sweep_id": self.sweep},
                goes_on=goes_on,
            )
            found = at(self.config, entry.point)
            train = found.loop
            if "train.epochs" not in entry.point:
                train = train.model_copy(update={"epochs": self.config.sweep.epochs})
            seed = entry.point.get(SEED, self.config.seed)
            settings = {"train": train, found.own.name: found.own, "seed": seed}
            run.params(run_params(self.config.model_copy(update=settings), self.plan))
            self._runs[entry.number] = run
        return self._runs[entry.number]

    def stop(self) -> None:
        """Close all open runs: the user ended the sweep."""
        for number, run in self._runs.items():
            if number not in self._closed:
                run.close("KILLED")
        log.info(
            "sweep: interrupted; trials done: %d, under way: %d; what these did is kept too",
            len(self._closed),
            len(self._runs.keys() - self._closed),
        )

    def _fail(self, entry: Entry, error: str) -> None:
        if entry.number not in self._closed:
            self.run(entry).tags({"dclip.error": error[:5000]})
        self._close(entry, "FAILED")

    def _close(self, entry: Entry, status: str) -> None:
        if entry.number in self._closed:
            return
        self._closed.add(entry.number)
        if status == "FINISHED" and self.may_have_failed:
            self.run(entry).tags({"dclip.error": ""})
        self.run(entry).close(status)


def reason(error: object) -> str:
    """Why a trial was lost, in one line."""
    if isinstance(error, BaseException):
        return told(cluster.cause(error))
    return (str(error).strip().splitlines() or ["its process ended"])[-1]
