"""What Ray Tune runs and calls back: trials that train together, and the writer of their runs."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.experiment import Trial

from dclip.fitting.batches import hold_out
from dclip.fitting.fit import DivergenceError, EpochReport, divergence, fit
from dclip.fitting.pack import Pack
from dclip.methods.registry import find_method
from dclip.store.paths import write_text
from dclip.store.reader import FeatureReader
from dclip.store.shards import digest
from pipeline.cluster import session as cluster
from pipeline.features.cache import cached_features
from pipeline.features.plan import FeaturePlan
from pipeline.records.checkpoints import read_state, write_state
from pipeline.records.tracking import TrackedRun, Tracker
from pipeline.settings.config import Config
from pipeline.settings.space import SEED, Entry, Trained, at, label, trained_at
from pipeline.stages.train import begin, metric_names, run_params
from pipeline.terminal.errors import told
from pipeline.terminal.progress import Progress

log = logging.getLogger(__name__)

PACK = "pack"
SCORE = "score"
"""What Tune compares its trials by: the best val/map of the pack, -1 where all of it failed."""


def state_files(folder: Path, pack: list[Entry]) -> tuple[Path, Path]:
    """Where a pack keeps its training state, and what it reported of each epoch."""
    name = folder / f"pack-{pack[0].number:04d}"  # no other pack has this point
    return name.with_suffix(".safetensors"), name.with_suffix(".json")


def read_results(path: Path, pack: list[Entry]) -> list[dict[str, Any]]:
    """Reports of a pack; none if the file is of other points, or not there.

    A search that was restored from an older record may choose another point for the same number.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results: list[dict[str, Any]] = found.get("results", [])
    return results if found.get(PACK) == json.loads(json.dumps(pack)) else []


def lines(results: list[dict[str, Any]], number: int) -> list[dict[str, float]]:
    """History of one point of a pack."""
    outcomes = [result["outcomes"][number] for result in results]
    return [outcome["line"] for outcome in outcomes if not outcome["error"]]


def trained_as(point: Mapping[str, Any], settings: Mapping[str, Any]) -> Trained:
    """Settings of the training at a point of a sweep."""
    return trained_at(settings["train"], settings["method"], settings["own"], point)


def begin_pack(
    pack: Sequence[Entry], reader: FeatureReader, settings: Mapping[str, Any], device: str
) -> Pack:
    """Fresh trials of some points."""
    all_of = [trained_as(point, settings) for _, point in pack]
    own = {
        "train": all_of[0].loop.model_dump(),
        "own": [one.own.model_dump() for one in all_of],
        "seeds": [point.get(SEED, settings["seed"]) for _, point in pack],
    }
    return begin({**settings, **own}, reader, device)


def refusal(entry: Entry, settings: Mapping[str, Any], num_classes: int) -> str:
    """Why a point is not trained: it is bound to diverge; empty if it is not."""
    one = trained_as(entry.point, settings)
    try:
        find_method(settings["method"]).check(one.own, one.loop, num_classes)
    except ValueError as error:
        return told(error)
    return ""


def trained(pack: Sequence[Entry], settings: Mapping[str, Any], num_classes: int) -> list[int]:
    """Places of a pack that are trained together: all but those that are bound to diverge."""
    return [n for n, entry in enumerate(pack) if not refusal(entry, settings, num_classes)]


def trial(space: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Train a pack of points together, report each epoch, go on from the state that is there.

    Tune's own checkpoints are not used: its record of a sweep may name one that was replaced in the
    moment the driver was killed, and then that trial could not go on. Here one state is replaced
    in place, and reports that may have been lost with the driver are made again.

    A point that diverges, or is bound to, is reported with its ``error`` and does not stop the
    others. That is a result. Everything else, such as a lost worker or a damaged shard, leaves this
    function as an exception, and the same command tries again what it kept from its end.

    Args:
        space: ``{"pack": [Entry, ...]}``.
        settings: ``train``, ``method``, ``own``, ``seed``, ``data_seed``, ``features``, ``output``,
            ``states`` (folder), ``device``, ``gpus``, the share of a GPU it may fill, and
            ``apart``, numbers of points that are not trained in packs (any more).

    Raises:
        Exception: Whatever keeps the pack, or a point of it, from being trained.
    """
    pack = [Entry(*entry) for entry in space[PACK]]  # Tune may have made lists of them
    if len(pack) > 1 and pack[0].number in settings["apart"]:
        return
    train = trained_as(pack[0].point, settings).loop
    device = torch.device(settings["device"])
    gpu_share = float(settings["gpus"]) if len(pack) == 1 else 1.0
    if device.type == "cuda" and gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    state, reports = state_files(Path(settings["states"]), pack)
    state.parent.mkdir(parents=True, exist_ok=True)
    with cached_features(
        settings["features"],
        Path(settings["output"]),
        cache=train.cache,
        device=device,
        gpu_share=gpu_share,
    ) as (reader, features):
        places = trained(pack, settings, len(reader.class_names))
        own = [pack[n] for n in places]
        training = begin_pack(own, reader, settings, str(device)) if own else None
        rows, val_rows = hold_out(len(reader), train.val_fraction, seed=settings["data_seed"])
        results = read_results(reports, pack)
        if not results:
            state.unlink(missing_ok=True)
        if training is not None and state.is_file():
            read_state(state, training)
        del results[0 if training is None else training.epoch :]  # written before the state
        for result in results:
            tune.report({**result, "resumed": len(results)})

        def report(epochs: list[EpochReport]) -> None:
            earlier = [row["error"] for row in results[-1]["outcomes"]] if results else []
            outcomes: list[dict[str, Any]] = []
            for place, entry in enumerate(pack):
                if place not in places:
                    outcomes.append(_failed(0, refusal(entry, settings, len(reader.class_names))))
                    continue
                assert training is not None  # as there are places
                number = places.index(place)
                history = lines(results, place)
                error = earlier[place] if earlier else ""
                if not error and number in training.diverged:
                    error = divergence(training, number)
                if not error and math.isnan(epochs[number].val_map):
                    error = f"its scores are no numbers after epoch {training.epoch}; lower lr"
                if error:
                    outcomes.append(_failed(len(history), error))
                    continue
                line = epochs[number].line()
                kept = [*history, line][training.best_epoch(number) - 1]
                outcomes.append(
                    {
                        "line": line,
                        "val_map": kept["val_map"],
                        "watched": {key: kept.get(key) for key in epochs[number].watched},
                        "epochs": len(history) + 1,
                        "error": "",
                    }
                )
            scores = [row["val_map"] for row in outcomes if row["val_map"] is not None]
            result = {
                "epoch": len(results) + 1,
                SCORE: max(scores, default=-1.0),
                "outcomes": outcomes,
                "resumed": 0,
            }
            results.append(result)
            write_text(reports, json.dumps({PACK: pack, "results": results}))
            if training is not None:
                write_state(state, training)
            tune.report(result)

        if training is None:
            report([])
            return
        try:
            fit(
                training,
                features,
                rows,
                seed=settings["data_seed"],
                val_rows=val_rows,
                on_epoch=report,
            )
        except DivergenceError:  # the last that was left
            report([])


def _failed(epochs: int, error: str) -> dict[str, Any]:
    return {"line": {}, "val_map": None, "epochs": epochs, "error": error}


class TrialRuns(tune.Callback):  # type: ignore[misc]
    """Writes one MLflow child run a point, from the driver; finds it again after a restore.

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
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Open the runs of the pack."""
        for entry in self._pack(trial):
            self.run(entry)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
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
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Close the runs of points that did not fail as finished."""
        for entry in self._pack(trial):
            self._close(entry, "FINISHED")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Close the runs as failed: what the pack met is no result, but to be tried again."""
        error = trial.get_pickled_error() or trial.get_error()
        for entry in self._pack(trial):
            self._fail(entry, reason(error))

    def _pack(self, trial: Trial) -> list[Entry]:
        """Points of a trial; none if each of them is now trained by itself."""
        pack = [Entry(*entry) for entry in trial.config[PACK]]
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
