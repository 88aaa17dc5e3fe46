"""One search space to many trials of training, on cached features, compared in MLflow.

Trials that may share the passes over the features run as packs; a pack, or a trial by itself, runs
:func:`dclip.fitting.fit.fit` in a process of its own. Only the driver writes to MLflow: a parent
run for the sweep, and a child run for each trial, found again after an interruption.
"""

import csv
import json
import logging
import math
import shlex
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dclip.fitting.loop import Loop
from dclip.words import counted
from pipeline.settings.config import Config, as_flags, bounds
from pipeline.settings.space import (
    SEED,
    Entry,
    at,
    checked_space,
    entries,
    identity_of,
    label,
    leaf,
    packs,
    shown,
    space_of,
    suggest,
    whole_numbers,
)
from pipeline.stages.train import check as check_training
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import StageError, UsageError, told

if TYPE_CHECKING:
    from dclip.store.reader import FeatureReader
    from pipeline.features.plan import FeaturePlan
    from pipeline.records.tracking import Tracker
    from pipeline.work.trials import TrialRuns

log = logging.getLogger(__name__)


def sweep_name(config: Config, plan: "FeaturePlan") -> str:
    """Name of a sweep; a hash of features, method, settings, space and seed."""
    from dclip.store.shards import digest

    space = space_of(config)
    own = config.own
    swept = {key.removeprefix("train.") for key in space}
    swept_own = {key.removeprefix(f"{own.name}.") for key in space}
    identity = digest(
        {
            "features": plan.fingerprint,
            **({"views": [view.fingerprint for view in plan.views]} if plan.views else {}),
            "method": config.method,
            "settings": {
                key: value
                for key, value in identity_of(config.method, own).items()
                if key not in swept_own
            },
            "loop": config.train.loop.model_dump(
                exclude=swept | {"epochs", "preset"}, exclude_defaults=True
            ),
            "val_fraction": config.train.val_fraction,
            "precision": config.train.precision,
            "space": space,
            "sweep": config.sweep.model_dump(exclude={"concurrency", "gpus_per_trial", "space"}),
            "seed": config.seed,
            "data_seed": config.data_seed,
        }
    )
    return f"sweep-{identity[:12]}"


def run(config: Config) -> Report:
    """Run all trials, write table and picture, register the best, print where to compare them."""
    started = time.perf_counter()
    check(config)  # before anything is loaded, which takes seconds

    from pipeline.cluster.address import require_cluster

    require_cluster()

    from pipeline.cluster import session as cluster
    from pipeline.features.opened import open_features
    from pipeline.features.plan import plan_features

    plan = plan_features(config, config.train_split)
    # verifies the files once; trials then trust them
    check_points(config, open_features(plan.folders, config.output))

    from pipeline.records.tracking import Tracker
    from pipeline.work.trials import TrialRuns

    name = sweep_name(config, plan)
    folder = config.output.absolute() / "sweeps" / name
    tracker = Tracker(config)
    tags = {"dclip.stage": "sweep", "dclip.sweep_id": name}
    title = f"sweep {label_of_space(config)} {name[-12:][:6]}"
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
        tracker.retire(name, [runs.key(_entry(row)) for row in rows])
        done = [row for row in rows if row["val_map"] is not None]
        again = [row for row in rows if row["again"]]
        files = _write_results(config, folder, rows)
        for path in files:
            tracked.artifact(path)
        if again:
            _write_checkpoints(config, plan, folder, done)
            _print_table(config, rows)
            raise StageError(
                f"{len(again)} of {len(rows)} trials of {name} could not be trained: "
                f"{again[0]['error']}; the same command trains them then, and keeps the others"
            )
        if not done:
            raise StageError(f"all {len(rows)} trials of {name} failed; see {files[0]}")
        best = done[0]
        checkpoint = _write_checkpoints(config, plan, folder, done)[0]
        words = explanation(config, name, rows, checkpoint)
        tracked.metrics({"best/val_map": best["val_map"], "trials": float(len(rows))})
        tracked.tags({f"best.{key}": shown(best[key]) for key in space_of(config)})
        tracked.tags({_NOTE: words})
        child = runs.run(_entry(best), goes_on=False)
        child.tags({_NOTE: words})
        child.register(
            _model(config),
            checkpoint,
            key=name,
            tags={
                "dclip.sweep_id": name,
                "val_map": f"{best['val_map']:.4f}",
                **{key: shown(value) for key, value in _settings(config, best).items()},
            },
            description=words,
        )
    _print_table(config, rows)
    _print_results(config, [*files, checkpoint], words, tracker)
    children = tracker.children(name, best_by="val/map")
    return {
        "stage": "sweep",
        "name": name,
        "trials": [{key: row[key] for key in row if key not in _INTERNAL} for row in rows],
        "best": {key: best[key] for key in best if key not in _INTERNAL},
        "failed": len(rows) - len(done),
        "checkpoint": str(checkpoint),
        "evaluate": evaluate_command(config, checkpoint),
        "model": tracker.model_uri(_model(config), name),
        "compare_url": tracker.compare_url(children)[0] if children else None,
        "files": [str(path) for path in files],
        "seconds": round(time.perf_counter() - started, 2),
    }


_NOTE = "mlflow.note.content"  # what MLflow shows as the description of a run
# of a row: how its weights are found again, and whether the same command trains it again
_INTERNAL = ("pack", "place", "again")
_STATES = "states"  # folder of the training states in that of the sweep
_APART = "apart.json"  # points that cannot be trained with others


def check(config: Config) -> None:
    """Refuse what cannot be swept, before any file is read.

    Raises:
        UsageError: See :func:`pipeline.settings.space.entries`; or there are no held-out images to
            rank trials by, or several workers for each trial.
    """
    check_training(config)
    checked_space(config)
    if config.sweep.search != "optuna":
        entries(config)
    if config.train.val_fraction == 0:
        raise UsageError("a sweep ranks trials by val/map; --train.val-fraction must be above 0")
    usual = config.own.presets[config.train.preset].loop.get("epochs", Loop().epochs)
    if config.train.epochs not in (usual, config.sweep.epochs):
        log.info(
            "sweep: trials have %s (--sweep.epochs); --train.epochs %d is for pipeline.train",
            counted(config.sweep.epochs, "epoch"), config.train.epochs,
        )  # fmt: skip
    if config.train.workers > 1:
        raise UsageError(
            f"a sweep runs many trials at once, each in one process; --train.workers "
            f"{config.train.workers} is for pipeline.train, use --sweep.concurrency here"
        )


def check_points(config: Config, reader: "FeatureReader") -> None:
    """Refuse what no trial, or one of them, could be trained with on these features.

    A point that is bound to diverge is no such case: that is a result of the sweep.

    Raises:
        UsageError: No held-out image has a class, or a value does not suit the features.
    """
    from dclip.fitting.batches import hold_out
    from dclip.fitting.fit import check_loop, check_source

    rows, val_rows = hold_out(len(reader), config.train.val_fraction, seed=config.data_seed)
    try:
        check_source(len(reader.class_names), reader, rows)
    except ValueError as error:
        raise UsageError(f"cannot sweep: {told(error)}") from None
    if not (reader.labels[val_rows] == 1).any():
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


def _model(config: Config) -> str:
    """Name of the registered model."""
    return f"dclip-{config.dataset_slug}"


def _entry(row: Mapping[str, Any]) -> Entry:
    return row["pack"][row["place"]]  # type: ignore[no-any-return]


def _settings(config: Config, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial was trained with: all that was swept, and what the method proposes to sweep."""
    own = at(config, _entry(row).point).own
    usual = {f"{own.name}.{key}": getattr(own, key) for key in own.sweep_space}
    return {**usual, **_entry(row).point}


def _run_trials(
    config: Config, plan: "FeaturePlan", folder: Path, runs: "TrialRuns"
) -> list[dict[str, Any]]:
    """Run or restore the trials; one row a trial, best first, failed ones last."""
    from ray import tune

    from dclip.store.paths import write_text
    from pipeline.cluster.device import choose_device
    from pipeline.terminal.progress import progress
    from pipeline.work.trials import PACK, trial

    device, why = choose_device(config.device)
    apart = _read_entries(folder / _APART)
    settings = _trial_settings(config, plan, folder, device)
    settings["apart"] = [entry.number for entry in apart]
    runs.part(apart)
    packs = _packs(config, folder, device)
    count = sum(map(len, packs)) if packs else config.sweep.trials or 8
    shared = f" in {len(packs)} packs" if packs and len(packs) < count else ""
    log.info("sweep: %s: %d trials%s, on %s (%s)", folder.name, count, shared, device, why)
    share = config.sweep.gpus_per_trial

    def need(parameters: Mapping[str, Any]) -> dict[str, float]:
        if device != "cuda":
            return {"cpu": 1}
        return {"cpu": 1, "gpu": 1 if len(parameters[PACK]) > 1 else share}

    trainable = tune.with_resources(partial(trial, settings=settings), need)

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
        results = fitted(packs, folder)
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
        for row in _rows(result, config.own.watched)
        if len(row["pack"]) == 1 or row["trial"] not in numbers
    ]
    return sorted(rows, key=lambda row: (row["val_map"] is None, -(row["val_map"] or 0)))


def _to_part(result: Any) -> list[Entry]:
    """Points of a pack that failed before its first epoch, as where one is too large for memory.

    Each is then trained by itself, so that the others do not fail with it. What would fail alone
    too, such as a damaged file, is no reason.
    """
    from pipeline.cluster import session as cluster
    from pipeline.work.trials import PACK, reason

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


def _trial_settings(
    config: Config, plan: "FeaturePlan", folder: Path, device: str
) -> dict[str, Any]:
    """What all trials share."""
    return {
        "train": {**config.train.model_dump(), "epochs": config.sweep.epochs},
        "method": config.method,
        "own": config.own.model_dump(),
        "features": plan.folders,
        "output": str(config.output.absolute()),
        "states": str(folder / _STATES),
        "seed": config.seed,
        "data_seed": config.data_seed,
        "device": device,
        "gpus": config.sweep.gpus_per_trial,
    }


def _packs(config: Config, folder: Path, device: str) -> list[list[Entry]]:
    """What trains together, as it was when the sweep began; none where Optuna chooses as it goes.

    A restored sweep must have the same packs, on whatever machine.
    """
    import ray

    from dclip.store.paths import write_text

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
    from ray.tune.schedulers import ASHAScheduler

    from pipeline.work.trials import SCORE

    if not config.sweep.asha:
        return None
    longest = config.sweep.epochs
    return ASHAScheduler(
        time_attr="epoch", metric=SCORE, mode="max", max_t=longest, grace_period=min(2, longest)
    )


def _optuna(config: Config, trials: int) -> Any:
    """TPE; a third of the trials, ten at most, are random before it begins to choose."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    from pipeline.work.trials import PACK, SCORE

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=config.seed, n_startup_trials=min(10, 1 + trials // 3)
    )
    choose = partial(suggest, checked_space(config), whole_numbers(config), PACK)
    return OptunaSearch(choose, metric=SCORE, mode="max", sampler=sampler)


def _rows(result: Any, watched: Collection[str]) -> list[dict[str, Any]]:
    """One row for each point of a finished pack."""
    from pipeline.work.trials import PACK, reason

    pack = [Entry(*entry) for entry in result.config[PACK]]
    outcomes = (result.metrics or {}).get("outcomes") or [{}] * len(pack)
    lost = reason(result.error) if result.error is not None else ""
    rows = []
    for place, (entry, outcome) in enumerate(zip(pack, outcomes, strict=True)):
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
                "place": place,
                "again": again,
            }
        )
    return rows


def _write_checkpoints(
    config: Config, plan: "FeaturePlan", folder: Path, rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """The weights of each trial as a checkpoint like that of a training, in the given order."""
    from pipeline.features.opened import open_features
    from pipeline.records.checkpoints import read_state, write_checkpoint
    from pipeline.records.origin import about_training
    from pipeline.work.trials import begin_pack, lines, read_results, state_files, trained

    reader = open_features(plan.folders, config.output, verify=False)
    settings = _trial_settings(config, plan, folder, "cpu")
    found: dict[int, Path] = {}
    (folder / "trials").mkdir(exist_ok=True)
    packs = {tuple(entry.number for entry in row["pack"]): row["pack"] for row in rows}
    for pack in packs.values():
        places = trained(pack, settings, len(reader.class_names))
        training = begin_pack([pack[place] for place in places], reader, settings, "cpu")
        state, reports = state_files(folder / _STATES, pack)
        read_state(state, training)
        results = read_results(reports, pack)[: training.epoch]
        for row in rows:
            if row["pack"] != pack:
                continue
            place, number = row["place"], places.index(row["place"])
            point = _entry(row).point
            own = training.settings[number]
            train = config.train.model_copy(update=training.loop.model_dump())
            about = about_training(
                config.model_copy(update={own.name: own, "train": train}),
                plan,
                reader,
                epoch=training.best_epoch(number),
                seed=point.get(SEED, config.seed),
                history=lines(results, place),
            )
            path = folder / "trials" / f"trial-{row['trial']:04d}.safetensors"
            write_checkpoint(path, training.method(number), about)
            found[row["trial"]] = path
    return [found[row["trial"]] for row in rows]


def _write_results(config: Config, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Table of all trials as CSV, and, if any has a score, its picture."""
    from dclip.store.paths import atomic_write
    from pipeline.pictures import figures
    from pipeline.pictures.canvas import save

    table, picture = folder / "trials.csv", folder / "trials.png"
    with (
        atomic_write(table) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        columns = [name for name in rows[0] if name not in _INTERNAL]
        writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    done = [row for row in rows if row["val_map"] is not None]
    if not done:
        return [table]
    color = next(iter(config.own.watched), None)
    save(figures.sweep_trials(done, space_of(config), color=color), picture)
    return [table, picture]


_MOST_SHOWN = 50  # lines on a terminal


def _print_table(config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
    """The best trials, and a line on how many more there are."""
    keys, watched = list(space_of(config)), config.own.watched
    table = [[*(_heading(config, key) for key in keys), "val mAP", *watched.values(), "epochs", ""]]
    for row in rows[:_MOST_SHOWN]:
        values = [row["val_map"], *(row[key] for key in watched)]
        cells = ["-" if v is None else f"{v:.3f}" for v in values]
        if row["val_map"] is not None:
            cells[0] = f"{100 * row['val_map']:.1f}"
        scores = [*cells, str(row["epochs"]), row["error"] and "failed: " + row["error"]]
        table.append([*(shown(row[key]) for key in keys), *scores])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([*map(str.rjust, line[:-1], widths), line[-1]]).rstrip() for line in table]
    if len(rows) > _MOST_SHOWN:
        failed = sum(row["val_map"] is None for row in rows[_MOST_SHOWN:])
        lines.append(f"and {len(rows) - _MOST_SHOWN} more, {failed} of them failed")
    sys.stdout.write("\n".join(lines) + "\n")


def _heading(config: Config, key: str) -> str:
    """What stands above the column of a swept key."""
    field = type(config.own).model_fields.get(key.removeprefix(f"{config.own.name}."))
    return (field and field.title) or leaf(key)


def _print_results(config: Config, files: Sequence[Path], words: str, tracker: "Tracker") -> None:
    lines = [str(path) for path in files]
    name = files[0].parent.name
    model = tracker.model_uri(_model(config), name)
    if model:
        lines += [f"best trial registered as {model}"]
    children = tracker.children(name, best_by="val/map")
    if children:
        url, named = tracker.compare_url(children)
        which = "trials"
        if named < len(children):
            everything = tracker.experiment_url()
            which = f"best {named} of {len(children)} trials (all are on {everything})"
        lines += [f"compare the {which}: {tracker.ui_command}", f"  {url}"]
    sys.stdout.write("\n".join(["", words, "", *lines]) + "\n")


def label_of_space(config: Config) -> str:
    """What is varied, in short: how a sweep is told from others in MLflow."""
    ranges = {
        key: values if isinstance(values, str) else ",".join(shown(value) for value in values)
        for key, values in space_of(config).items()
    }
    return label(ranges)[:200]


def evaluate_command(config: Config, checkpoint: Path) -> str:
    """Shell command that evaluates a checkpoint with the settings of its sweep."""
    base = config.output.absolute()
    short = config.output / checkpoint.relative_to(base)
    words = ["python", "-m", "pipeline.evaluate", *as_flags(config, "extract", "evaluate")]
    return shlex.join([*words, "--checkpoint", str(short)])


def explanation(
    config: Config, name: str, rows: Sequence[Mapping[str, Any]], checkpoint: Path
) -> str:
    """Which trial is the best, by how much, and how it is evaluated; as MLflow shows it.

    Args:
        config: Settings of the sweep.
        name: Name of the sweep.
        rows: All trials, best first, failed ones last.
        checkpoint: That of the best trial.
    """
    best, *others = [row for row in rows if row["val_map"] is not None]
    failed = f" ({len(rows) - 1 - len(others)} failed)" if len(rows) > 1 + len(others) else ""
    settings = ", ".join(f"{key}={shown(value)}" for key, value in _settings(config, best).items())
    lines = [
        f"Best of {counted(len(rows), 'trial')}{failed} of {name}: trial {best['trial']}, "
        f"{settings}.",
        f"val/map {best['val_map']:.4f} on the held-out images of {config.dataset_slug}, split "
        f"{config.train_split}; the test split was not looked at.",
        _lead(config, best, others),
        f"Evaluate it: {evaluate_command(config, checkpoint)}",
    ]
    return "\n\n".join(lines)


def _lead(config: Config, best: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """How far the best setting is before the next, in deviations between seeds where known."""
    keys = [key for key in space_of(config) if key != SEED]

    def setting(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in keys)

    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in (best, *others):
        groups.setdefault(setting(row), []).append(row["val_map"])
    deviation = seed_deviation(list(groups.values())) if SEED in space_of(config) else None
    spread = "" if deviation is None else f"; between seeds val/map deviates by {deviation:.4f}"
    following = next((row for row in others if setting(row) != setting(best)), None)
    if following is None:
        return f"No other setting was trained{spread}."
    distance = best["val_map"] - following["val_map"]
    label = ", ".join(f"{key}={shown(following[key])}" for key in keys)
    first = f"The next setting, trial {following['trial']} ({label}), has {distance:.4f} less"
    if deviation is None:
        return (
            f"{first}. How much of that is chance is not known: train each setting with several "
            "seeds (--space seed=0,1,2)."
        )
    if deviation == 0:
        return f"{first}{spread}."
    return (
        f"{first}: {distance / deviation:.1f} times the deviation between seeds ({deviation:.4f})."
    )


def seed_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups, pooled over them; None if each has one value only."""
    several = [group for group in groups if len(group) > 1]
    if not several:
        return None
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in several)
    return math.sqrt(squares / sum(len(group) - 1 for group in several))


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    from pipeline.features.plan import is_complete, plan_features

    check(config)
    plan = plan_features(config, config.train_split)
    sweep = config.sweep
    lines = [f"features {plan.folder} ({'complete' if is_complete(plan) else 'not extracted yet'})"]
    if sweep.search == "optuna":
        trials = [f"chosen from {label(dict(space_of(config)))}"]
        count = sweep.trials or 8
    else:
        points = entries(config)
        count = len(points)
        trials = [label(entry.point) for entry in points[:_MOST_SHOWN]]
        if count > _MOST_SHOWN:
            trials.append(f"and {count - _MOST_SHOWN} more")
    size = f"{counted(count, 'trial')} of {counted(sweep.epochs, 'epoch')}"
    return "\n".join([*lines, f"{sweep_name(config, plan)}: {size}", *trials])
