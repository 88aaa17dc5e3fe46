"""A sweep on Ray Tune: its packs, the run of each trial in MLflow, checkpoints, the best.

Trials that may share the passes over the features run as packs, each in a process of its own
(:mod:`pipeline.work.trials`). Only the driver writes to MLflow: a parent run for the sweep, and a
child run for each trial, found again after an interruption.
"""

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from dclip.checkpoints.files import write_checkpoint
from dclip.fitting.batches import hold_out
from dclip.fitting.drawn import part_of
from dclip.fitting.fit import check_loop, check_source
from dclip.store.paths import write_text
from dclip.store.reader import FeatureReader
from dclip.words import told
from pipeline.cluster import session as cluster
from pipeline.cluster.device import choose_device
from pipeline.features.backbone import clip_of, describe_backbone
from pipeline.features.opened import open_features
from pipeline.features.plan import FeaturePlan
from pipeline.records.checkpoints import export_refusal, read_state
from pipeline.records.origin import about_training
from pipeline.records.tracking import Tracker
from pipeline.settings.config import Config
from pipeline.settings.sections import bounds
from pipeline.settings.space import (
    SEED,
    Entry,
    checked_space,
    entries,
    every_value,
    packs,
    shown,
    space_of,
    suggest,
    whole_numbers,
)
from pipeline.settings.training import at
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import StageError, UsageError
from pipeline.terminal.progress import progress
from pipeline.work import ranking
from pipeline.work.calibrating import calibration_of
from pipeline.work.packs import begin, placeholder
from pipeline.work.ranking import entry_of
from pipeline.work.trial_runs import TrialRuns, reason
from pipeline.work.trials import (
    PACK,
    SCORE,
    Sweep,
    lines,
    read_results,
    state_files,
    train_pack,
)

log = logging.getLogger(__name__)

_NOTE = "mlflow.note.content"  # what MLflow shows as the description of a run
_STATES = "states"  # folder of the training states in that of the sweep
_APART = "apart.json"  # trials that cannot be trained with others


def run(config: Config, plan: FeaturePlan, name: str) -> Report:
    """Run all trials, write table and picture, register the best, print where to compare them.

    Args:
        config: Settings.
        plan: Features.
        name: Name of the sweep.

    Raises:
        UsageError: A trial could not be trained on these features.
        StageError: Trials could not be trained, or all of them failed.
    """
    started = time.perf_counter()
    # verifies the files once; trials then trust them
    reader = open_features(plan.folders, config.output)
    check_points(config, reader)
    folder = config.output.absolute() / "sweeps" / name
    tracker = Tracker(config)
    model = ranking.model_name(config)
    unfit = ""
    if tracker.model_uri(model, name) is None:  # before hours of training
        backbone = describe_backbone(config)
        example = placeholder(
            config.method, config.own, reader.class_names, backbone, clip_of(config)
        )
        unfit = export_refusal(example)
    if unfit:
        log.warning("sweep: no model will be registered: %s", unfit)
    tags = {"dclip.stage": "sweep", "dclip.sweep_id": name}
    title = f"sweep {ranking.label_of_space(config)} {name[-12:][:6]}"
    with tracker.run(title, key=name, tags=tags) as tracked:
        said = config.sweep.model_dump(exclude={"concurrency", "gpus_per_trial"})
        said["space"] = dict(space_of(config))
        tracked.params({f"sweep.{key}": value for key, value in said.items()})
        tracked.dataset(
            f"{config.dataset_slug}-{config.train_split}", plan.folder, plan.fingerprint, "training"
        )
        runs = TrialRuns(config, plan, name, tracker)
        with cluster.ray_session(config):
            rows = _run_trials(config, plan, folder, runs)
        tracker.retire(name, [runs.key(entry_of(row)) for row in rows])
        done = [row for row in rows if row["val_map"] is not None]
        again = [row for row in rows if row["again"]]
        files = ranking.write(config, folder, rows)
        for path in files:
            tracked.artifact(path)
        if again:
            write_checkpoints(config, plan, folder, done)
            ranking.print_table(config, rows)
            raise StageError(
                f"{len(again)} of {len(rows)} trials of {name} could not be trained: "
                f"{again[0]['error']}; the same command trains them then, and keeps the others"
            )
        if not done:
            raise StageError(f"all {len(rows)} trials of {name} failed; see {files[0]}")
        best = done[0]
        checkpoint = write_checkpoints(config, plan, folder, done)[0]
        words = ranking.explanation(config, name, rows, checkpoint)
        tracked.metrics({"best/val_map": best["val_map"], "trials": float(len(rows))})
        tracked.tags({f"best.{key}": shown(best[key]) for key in space_of(config)})
        tracked.tags({_NOTE: words})
        child = runs.run(entry_of(best), goes_on=False)
        child.tags({_NOTE: words})
        if not unfit:
            child.register(
                model,
                checkpoint,
                key=name,
                tags={
                    "dclip.sweep_id": name,
                    "val_map": f"{best['val_map']:.4f}",
                    **{
                        key: shown(value)
                        for key, value in ranking.settings_of(config, best).items()
                    },
                },
                description=words,
            )
    ranking.print_table(config, rows)
    ranking.print_results(config, [*files, checkpoint], words, tracker)
    children = tracker.children(name, best_by="val/map")
    return {
        "stage": "sweep",
        "name": name,
        "trials": [ranking.told_of(row) for row in rows],
        "best": ranking.told_of(best),
        "failed": len(rows) - len(done),
        "checkpoint": str(checkpoint),
        "evaluate": ranking.evaluate_command(config, checkpoint),
        "model": tracker.model_uri(model, name),
        "compare_url": tracker.compare_url(children)[0] if children else None,
        "files": [str(path) for path in files],
        "seconds": round(time.perf_counter() - started, 2),
    }


def check_points(config: Config, reader: FeatureReader) -> None:
    """Refuse what no trial, or one of them, could be trained with on these features.

    A point that is bound to diverge is no such case: that is a result of the sweep.

    Raises:
        UsageError: No held-out image has a class, or a value does not suit the features.
    """
    subsets = {one.subset.model_dump_json(): one.subset
               for one in (at(config, point) for point in every_value(config))}  # fmt: skip
    for subset in subsets.values():
        try:
            every, names = np.arange(len(reader)), reader.class_names
            left, kept, _ = part_of(subset, reader, every, names, seed=config.data_seed)
            parts = hold_out(len(kept), config.train.val_fraction, seed=config.data_seed)
            rows, val_rows = (kept[part] for part in parts)
            check_source(len(names), left, rows)
        except ValueError as error:
            raise UsageError(f"cannot sweep: {told(error)}") from None
        if not (left.labels[val_rows] == 1).any():
            raise UsageError(
                "none of the held-out images has a class to compare trials by; raise "
                "--train.val-fraction"
            )
    space = checked_space(config)
    for key, values in space.items():
        if key not in _SUIT_FEATURES:
            continue
        for value in bounds(values) if isinstance(values, str) else values:
            try:
                check_loop(at(config, {key: value}).loop, reader, val_rows)
            except ValueError as error:
                raise UsageError(f"sweep.space: {key}={shown(value)}: {told(error)}") from None
    if not space.keys() & _SUIT_FEATURES:
        try:
            check_loop(config.train, reader, val_rows)
        except ValueError as error:
            raise UsageError(f"cannot sweep: {told(error)}") from None


# keys whose values may not suit the features, each by itself
_SUIT_FEATURES = {"train.selection", "train.feature_cutout"}


def _run_trials(
    config: Config, plan: FeaturePlan, folder: Path, runs: TrialRuns
) -> list[dict[str, Any]]:
    """Run or restore the trials; one row a trial, best first, failed ones last."""
    device, why = choose_device(config.device)
    apart = _read_entries(folder / _APART)
    sweep = shared(config, plan, folder, device, apart)
    runs.part(apart)
    planned = _packs(config, folder, device)
    count = sum(map(len, planned)) if planned else config.sweep.trials or 8
    together = f" in {len(planned)} packs" if planned and len(planned) < count else ""
    log.info("sweep: %s: %d trials%s, on %s (%s)", folder.name, count, together, device, why)
    share = config.sweep.gpus_per_trial

    def need(parameters: Mapping[str, Any]) -> dict[str, float]:
        if device != "cuda":
            return {"cpu": 1}
        return {"cpu": 1, "gpu": 1 if len(parameters[PACK]) > 1 else share}

    trainable = tune.with_resources(partial(train_pack, sweep=sweep), need)

    def fitted(packs: Sequence[Sequence[Entry]], folder: Path) -> list[Any]:
        space = {PACK: tune.grid_search(packs)} if packs else {}
        if tune.Tuner.can_restore(str(folder)):
            log.info("sweep: %s was begun before; finished trials are kept", folder.name)
            runs.may_have_failed = True
            tuner = tune.Tuner.restore(
                str(folder), trainable=trainable, param_space=space, resume_errored=True
            )
            tuner._local_tuner._run_config.callbacks = [runs]
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=_scheduler(config),
                    search_alg=None if packs else _optuna(config, count),
                    num_samples=1 if packs else count,
                    max_concurrent_trials=config.sweep.concurrency,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=folder.name,
                    storage_path=str(folder.parent),
                    callbacks=[runs],
                    failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
                    verbose=0,
                ),
            )
        try:
            return list(tuner.fit())
        except KeyboardInterrupt:
            runs.stop()
            raise

    with progress("sweep", count * config.sweep.epochs, "epochs") as bar:
        runs.bar = bar
        results = fitted(planned, folder)
        if found := [entry for result in results for entry in _to_part(result)]:
            apart = sorted([*apart, *found], key=lambda entry: entry.number)
            runs.part(found)
            write_text(folder / _APART, json.dumps(apart))
        if apart:
            results += fitted([[entry] for entry in apart], folder / "apart")
    numbers = {entry.number for entry in apart}
    rows = [
        row
        for result in results
        for row in rows_of(result, config.own.watched)
        if len(row["pack"]) == 1 or row["trial"] not in numbers
    ]
    return sorted(rows, key=lambda row: (row["val_map"] is None, -(row["val_map"] or 0)))


def _to_part(result: Any) -> list[Entry]:
    """Points of a pack that failed before its first epoch, as where one is too large for memory.

    Each is then trained by itself, so that the others do not fail with it. What would fail alone
    too, such as a damaged file, is no reason.
    """
    pack = [Entry(*entry) for entry in result.config[PACK]]
    if len(pack) == 1 or result.error is None or (result.metrics or {}).get("outcomes"):
        return []
    if isinstance(cluster.cause(result.error), StageError | ValueError | OSError):
        return []
    log.warning(
        "sweep: %d trials cannot be trained together (%s); each is now trained by itself",
        len(pack), reason(result.error),
    )  # fmt: skip
    return pack


def shared(
    config: Config,
    plan: FeaturePlan,
    folder: Path,
    device: str = "cpu",
    apart: Sequence[Entry] = (),
) -> Sweep:
    """What all packs of a sweep share.

    Args:
        config: Settings.
        plan: Features.
        folder: Of the sweep.
        device: Where trials are trained.
        apart: Trials that are not trained in packs any more.
    """
    return Sweep(
        config.method,
        config.train.model_copy(update={"epochs": config.sweep.epochs}),
        config.own,
        config.subset,
        seed=config.seed,
        data_seed=config.data_seed,
        num_classes=len(plan.listing.class_names),
        features=tuple(plan.folders),
        output=config.output.absolute(),
        states=folder / _STATES,
        device=device,
        gpus=config.sweep.gpus_per_trial,
        apart=frozenset(entry.number for entry in apart),
        clip=clip_of(config),
        images=plan.listing if config.own.sees_images() else None,
    )


def _packs(config: Config, folder: Path, device: str) -> list[list[Entry]]:
    """What trains together, as it was when the sweep began; none where Optuna chooses as it goes.

    A restored sweep must have the same packs, on whatever machine.
    """
    if config.sweep.search == "optuna":
        return []
    plan = folder / "packs.json"
    if plan.is_file():
        return [[Entry(*entry) for entry in pack] for pack in json.loads(plan.read_bytes())]
    slots = int(ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 1))
    slots = min(slots, config.sweep.concurrency or slots)
    found = packs(config, entries(config), max(1, slots))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(plan, json.dumps(found))
    return found


def _read_entries(path: Path) -> list[Entry]:
    return [Entry(*entry) for entry in json.loads(path.read_bytes())] if path.is_file() else []


def _scheduler(config: Config) -> Any:
    """ASHA, or none."""
    if not config.sweep.asha:
        return None
    longest = config.sweep.epochs
    return ASHAScheduler(
        time_attr="epoch", metric=SCORE, mode="max", max_t=longest, grace_period=min(2, longest)
    )


def _optuna(config: Config, trials: int) -> Any:
    """TPE; a third of the trials, ten at most, are random before it begins to choose."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=config.seed, n_startup_trials=min(10, 1 + trials // 3)
    )
    choose = partial(suggest, checked_space(config), whole_numbers(config), PACK)
    return OptunaSearch(choose, metric=SCORE, mode="max", sampler=sampler)


def rows_of(result: Any, watched: Collection[str]) -> list[dict[str, Any]]:
    """One row for each point of a finished pack."""
    pack = [Entry(*entry) for entry in result.config[PACK]]
    outcomes = (result.metrics or {}).get("outcomes") or [{}] * len(pack)
    lost = reason(result.error) if result.error is not None else ""
    rows = []
    for position, (entry, outcome) in enumerate(zip(pack, outcomes, strict=True)):
        error = outcome.get("error") or lost
        again = bool(error) and not outcome.get("error")
        rows.append(
            {
                "trial": entry.number,
                **entry.point,
                "val_map": None if error else outcome.get("val_map"),
                **{key: None if error else outcome["watched"].get(key) for key in watched},
                "epochs": outcome.get("epochs", 0),
                "error": error,
                "pack": pack,
                "position": position,
                "again": again,
            }
        )
    return rows


def write_checkpoints(
    config: Config, plan: FeaturePlan, folder: Path, rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """The weights of each trial as a checkpoint like that of a training, in the given order."""
    reader = open_features(plan.folders, config.output, verify=False)
    sweep = shared(config, plan, folder)
    found: dict[int, Path] = {}
    (folder / "trials").mkdir(exist_ok=True)
    packs = {tuple(entry.number for entry in row["pack"]): row["pack"] for row in rows}
    for pack in packs.values():
        positions = sweep.trained(pack)
        job = sweep.job([pack[n] for n in positions])
        left, _, held = job.data(job.beside(reader), reader.class_names)
        training = begin(job, reader, fresh=False)
        state, kept = state_files(sweep.states, pack)
        read_state(state, training)
        results = read_results(kept, pack)[: training.epoch]
        for row in rows:
            if row["pack"] != pack:
                continue
            number = positions.index(row["position"])
            own = training.settings[number]
            train = config.train.model_copy(update=training.loop.model_dump())
            path = folder / "trials" / f"trial-{row['trial']:04d}.safetensors"
            method = training.method(number)
            about = about_training(
                config.model_copy(update={own.name: own, "train": train}),
                plan,
                reader.manifest,
                epoch=training.best_epoch(number),
                seed=entry_of(row).point.get(SEED, config.seed),
                history=lines(results, row["position"]),
                calibration=calibration_of(method, left, held, path.stem),
            )
            write_checkpoint(path, method, about)
            found[row["trial"]] = path
    return [found[row["trial"]] for row in rows]
