"""Which part of the method does what: trainings that differ from the recipe in one thing each.

Trainings that can share passes over the features do (:class:`dclip.fitting.pack.Pack`); a Ray task
fits such a pack and scores it on the test split, and each result is a small file. So an ablation
that was stopped goes on, and more seeds or rows train only what is new.
"""

import csv
import json
import logging
import math
import re
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dclip.fitting.loop import Loop
from dclip.methods.settings import MethodSettings
from dclip.words import counted
from pipeline.settings.config import (
    DEFAULT_METHOD,
    AblateRow,
    Config,
    EvaluateConfig,
    TrainConfig,
    conf_folder,
    read_layer,
)
from pipeline.settings.space import SEED, Trained, alike, at, checked_point, identity_of, leaf
from pipeline.stages.train import check as check_training
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import StageError, UsageError, told

if TYPE_CHECKING:
    from pipeline.features.plan import FeaturePlan
    from pipeline.records.tracking import Tracker

log = logging.getLogger(__name__)


AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        study: Which question it belongs to.
        label: What it is called there.
        trained: Settings it is trained with.
    """

    study: str
    label: str
    trained: Trained


@dataclass(frozen=True)
class Trial:
    """One training: its settings and a seed of initial weights.

    Attributes:
        trained: Settings.
        seed: Seed of the initial weights.
        name: Hash of these, of the features and of what else shapes the result.
    """

    trained: Trained
    seed: int
    name: str


def rows(config: Config) -> list[Row]:
    """All lines of the table, study by study.

    Raises:
        UsageError: There is no such study or setting, or a value that cannot be.
    """
    check_training(config)
    given = _given_rows(config)
    studies = list(dict.fromkeys(row.study for row in given))
    wanted = config.ablate.studies or studies
    for study in wanted:
        if study not in studies:
            raise UsageError(f"ablate.studies: there is no {study!r}; {', '.join(studies)}")
    return [
        Row(row.study, row.label, _trained(config, row))
        for study in dict.fromkeys(wanted)
        for row in given
        if row.study == study
    ]


def _given_rows(config: Config) -> list[AblateRow]:
    """Rows that the settings give, or those that are usual for the method."""
    asked, own = config.ablate, config.own
    if asked.vary:
        return [
            AblateRow(study=leaf(key), label=f"{leaf(key)} = {value}", set={key: value})
            for key, values in asked.vary.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
    if asked.rows:
        return list(asked.rows)
    if config.method == DEFAULT_METHOD:
        _, content = read_layer(conf_folder() / "ablate.yaml")
        return [AblateRow.model_validate(row) for row in content["ablate"]["rows"]]
    rows = [AblateRow(study="method", label=AS_IT_IS)]
    rows += [
        AblateRow(study="method", label=variant.title, set=_named(own, variant.changes))
        for variant in own.variants.values()
    ]
    for key, values in own.sweep_space.items():
        rows.append(AblateRow(study=key, label=AS_IT_IS))
        rows += [
            AblateRow(study=key, label=f"{key} = {value}", set=_named(own, {key: value}))
            for value in values
        ]
    return rows


def _named(own: MethodSettings, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{own.name}.{key}": value for key, value in changes.items()}


def _trained(config: Config, row: AblateRow) -> Trained:
    """Settings of a row: of its last epoch, with what it changes.

    Raises:
        UsageError: It changes what is no setting, or to a value that cannot be.
    """
    changes = {key.replace("-", "_"): value for key, value in row.set.items()}
    preset, base = changes.pop(_PRESET, None), config
    where = f"ablate row {row.label!r}"
    if preset is not None:
        own = config.own
        if preset not in own.presets:
            known = ", ".join(own.presets)
            raise UsageError(f"{where}: {own.name} has the presets {known}, not {preset!r}")
        values = own.presets[preset]
        place = config.train.model_dump(include=_PLACE)
        train = TrainConfig.model_validate({**place, **values.loop, "preset": preset})
        filled = type(own).model_validate(values.own)
        base = config.model_copy(update={"train": train, own.name: filled})
    fixed: dict[str, Any] = {"selection": "last"}
    if config.ablate.epochs is not None:
        fixed["epochs"] = config.ablate.epochs
    for key in (SEED, "train.selection", *(["train.epochs"] if "epochs" in fixed else [])):
        if key in changes:
            raise UsageError(
                f"{where}: {key} is the same in all rows (--ablate.seeds, --ablate.epochs; scores "
                "are of the last epoch)"
            )
    try:
        point = {key: _relative(base, key, value) for key, value in changes.items()}
        checked = checked_point(base, point)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    found = at(base, checked)
    return found._replace(loop=found.loop.model_copy(update=fixed))


def _relative(config: Config, key: str, value: Any) -> Any:
    """``x0.1`` as a tenth of what the settings say, without rounding noise."""
    if not (isinstance(value, str) and _TIMES.fullmatch(value)):
        return value
    own = at(config, {})
    usual = getattr(own.loop if key.startswith("train.") else own.own, leaf(key), None)
    if not isinstance(usual, int | float):
        raise UsageError(f"{key}={value}: the settings have no number there; give one")
    product = float(f"{usual * float(value[1:]):.6g}")
    return round(product) if isinstance(usual, int) else product


_TIMES = re.compile(r"x[0-9]+(\.[0-9]+)?")
_PRESET = "train.preset"


# of the section train: where and how, not what
_PLACE = {*TrainConfig.model_fields} - {*Loop.model_fields}


def _identity(method: str, trained: Trained) -> dict[str, Any]:
    """What tells a training from others."""
    return {
        "loop": trained.loop.loop.model_dump(exclude={"preset"}, exclude_defaults=True),
        "method": method,
        "settings": identity_of(method, trained.own),
    }


def _name(method: str, trained: Trained, seed: int, shared: Mapping[str, Any]) -> str:
    from dclip.store.shards import digest

    return digest({**shared, **_identity(method, trained), "seed": seed})[:16]


class _Plan:
    """What an ablation trains, on what, and where results go."""

    def __init__(self, config: Config) -> None:
        from dclip.store.shards import digest
        from pipeline.features.plan import open_labelled, plan_features

        open_labelled(config, config.test_split)  # before a backbone is loaded
        self.train: FeaturePlan = plan_features(config, config.train_split)
        self.test: FeaturePlan = plan_features(config, config.test_split)
        self.rows = rows(config)
        self.seeds = range(config.seed, config.seed + config.ablate.seeds)
        shared = {
            "features": [plan.fingerprint for plan in (self.train, *self.train.views, self.test)],
            "data_seed": config.data_seed,
            "val_fraction": config.train.val_fraction,
            "precision": config.train.precision,
        }
        threshold = config.evaluate.threshold
        if threshold != EvaluateConfig.model_fields["threshold"].default:
            shared["threshold"] = threshold
        self.trials = {
            (trained, seed): Trial(trained, seed, _name(config.method, trained, seed, shared))
            for trained in dict.fromkeys(row.trained for row in self.rows)
            for seed in self.seeds
        }
        table = [
            (row.study, row.label, self.trials[row.trained, self.seeds[0]]) for row in self.rows
        ]
        told = [[study, label, trial.name] for study, label, trial in table]
        self.name = f"ablation-{digest({'rows': told, 'seeds': len(self.seeds)})[:12]}"
        home = config.output.absolute() / "ablations"
        self.folder, self._results = home / self.name, home / "trainings"

    def result_path(self, trial: Trial) -> Path:
        """Where the result of a training is or goes."""
        return self._results / f"{trial.name}.json"

    def done(self) -> dict[Trial, dict[str, Any]]:
        """Results of the finished trainings."""
        found = {}
        for trial in self.trials.values():
            path = self.result_path(trial)
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except ValueError:
                raise StageError(f"{path} is damaged; delete it to train this again") from None
            if "threshold" not in result:  # of an earlier version: F1 of a threshold nobody knows
                test = {key: result["test"][key] for key in ("map", "ap") if key in result["test"]}
                result["test"] = test
            found[trial] = result
        return found


def packs(trials: Iterable[Trial], size: int) -> list[list[Trial]]:
    """Trainings that can run together, at most ``size`` each, all of about one size."""
    everything = list(trials)
    groups = [[everything[n] for n in kind] for kind in alike([t.trained for t in everything])]
    result = []
    for group in groups:
        parts = math.ceil(len(group) / size)
        result += [group[part::parts] for part in range(parts)]
    return sorted(result, key=lambda pack: -len(pack) * pack[0].trained.loop.epochs)


def run(config: Config) -> Report:
    """Train what is missing, write table and picture, record all in MLflow, print the table."""
    import numpy as np

    from dclip.fitting.fit import check_loop, check_source
    from dclip.methods.registry import find_method
    from pipeline.cluster import session as cluster
    from pipeline.features.opened import open_features
    from pipeline.records.tracking import Tracker

    started = time.perf_counter()
    plan = _Plan(config)
    reader = open_features(plan.train.folders, config.output)
    test = open_features(plan.test.folders, config.output)
    if test.class_names != reader.class_names:
        raise StageError(
            f"splits {config.train_split} and {config.test_split} have other classes; an ablation "
            "is scored on the classes it is trained on"
        )
    for row in plan.rows:
        try:
            find_method(config.method).check(
                row.trained.own, row.trained.loop, len(reader.class_names)
            )
            check_loop(row.trained.loop, reader, None)
        except ValueError as error:
            raise StageError(f"row {row.label!r}: {error}") from None
    check_source(len(reader.class_names), reader, np.arange(len(reader)))
    tracker = Tracker(config)
    with tracker.run(plan.name, key=plan.name, tags={"dclip.stage": "ablate"}) as tracked:
        tracked.params({f"ablate.{k}": v for k, v in config.ablate.model_dump().items()})
        source = f"{config.dataset_slug}-{config.train_split}"
        tracked.dataset(source, plan.train.folder, plan.train.fingerprint, "training")
        results = plan.done()
        left = [trial for trial in plan.trials.values() if trial not in results]
        for trial, result in results.items():
            _record(plan, tracker, trial, result)
        if left:
            with cluster.ray_session(config):
                for trial, result in _fit_all(config, plan, left):
                    results[trial] = result
                    _record(plan, tracker, trial, result)
        table = summary(plan.rows, {(t.trained, t.seed): r for t, r in results.items()}, plan.seeds)
        files = _write(config, plan, table)
        for path in files:
            tracked.artifact(path)
        tracked.text(config.model_dump_json(indent=1), "config.json")
    sys.stdout.write(f"{as_text(config, table)}\n" + "".join(f"{path}\n" for path in files))
    sys.stdout.write(f"compare in MLflow: {tracker.ui_command}\n  {tracker.experiment_url()}\n")
    return {
        "stage": "ablate",
        "name": plan.name,
        "rows": table,
        "trained_now": len(left),
        "files": [str(path) for path in files],
        "seconds": round(time.perf_counter() - started, 2),
    }


def _fit_all(
    config: Config, plan: _Plan, left: Sequence[Trial]
) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Run packs as Ray tasks, one a CPU or GPU; each result is kept, then given, as it comes."""
    import ray

    from dclip.store.paths import write_text
    from pipeline.cluster import session as cluster
    from pipeline.cluster.device import choose_device
    from pipeline.terminal.progress import progress

    device, why = choose_device(config.device)
    todo = packs(left, config.ablate.pack)
    log.info(
        "ablate: %s: %d trainings in %d packs on %s (%s)",
        plan.name, len(left), len(todo), device, why,
    )  # fmt: skip
    settings = {
        "features": plan.train.folders,
        "test": plan.test.folders,
        "output": str(config.output.absolute()),
        "val_fraction": config.train.val_fraction,
        "data_seed": config.data_seed,
        "threshold": config.evaluate.threshold,
        "cache": config.train.cache,
        "method": config.method,
        "device": device,
    }
    need = {"num_cpus": 1, "num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    task = ray.remote(**need)(_fit_pack)
    running = {task.remote(settings, pack): pack for pack in todo}
    with progress("ablate", len(plan.trials), "trainings", len(plan.trials) - len(left)) as bar:
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            pack = running.pop(ready)
            try:
                results = ray.get(ready)
            except ray.exceptions.RayError as error:
                raise StageError(
                    f"ablation {plan.name} failed: {told(cluster.cause(error))}; the same command "
                    "goes on"
                ) from None
            for trial, result in zip(pack, results, strict=True):
                path = plan.result_path(trial)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(result, indent=1))
                yield trial, result
            bar.advance(len(pack))


def _fit_pack(settings: Mapping[str, Any], pack: Sequence[Trial]) -> list[dict[str, Any]]:
    """Train a pack to its last epoch and score that on the test split; one result a training."""
    import numpy as np
    import torch

    from dclip.fitting.batches import hold_out
    from dclip.fitting.fit import DivergenceError, EpochReport, divergence, fit
    from pipeline.features.cache import cached_features
    from pipeline.features.opened import open_features
    from pipeline.records.provenance import git_commit
    from pipeline.stages.evaluate import measure
    from pipeline.stages.train import begin

    history: list[list[EpochReport]] = []
    output, device = Path(settings["output"]), torch.device(settings["device"])
    with cached_features(settings["features"], output, cache=settings["cache"], device=device) as (
        reader,
        features,
    ):
        own = [trial.trained.own.model_dump() for trial in pack]
        seeds, train = [trial.seed for trial in pack], pack[0].trained.loop.model_dump()
        training = begin(
            {**settings, "train": train, "own": own, "seeds": seeds}, reader, str(device)
        )
        rows, val_rows = hold_out(len(reader), settings["val_fraction"], seed=settings["data_seed"])
        with suppress(DivergenceError):  # each training says where it did
            fit(
                training,
                features,
                rows,
                seed=settings["data_seed"],
                val_rows=val_rows,
                on_epoch=history.append,
            )
    test = open_features(settings["test"], output, verify=False)
    scores = training.predict(test, np.arange(len(test)))
    results = []
    for number, trial in enumerate(pack):
        lines = [reports[number].line() for reports in history]
        diverged = divergence(training, number) if number in training.diverged else ""
        if not diverged and not scores[number].isfinite().all():
            diverged = "its scores are no numbers"
        results.append(
            {
                "train": trial.trained.loop.loop.model_dump(),
                trial.trained.own.name: trial.trained.own.model_dump(),
                "seed": trial.seed,
                "parameters": sum(
                    weight.numel() for weight in training.method(number).parameters()
                ),
                "diverged": diverged,
                "history": lines,
                "threshold": settings["threshold"],
                "test": measure(scores[number], test.labels, settings["threshold"])
                if not diverged
                else {},
                "commit": git_commit(),
            }
        )
    return results


def summary(
    table: Sequence[Row],
    results: "Mapping[tuple[Trained, int], Mapping[str, Any]]",
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Every row with its scores, seed by seed, and their mean and standard deviation.

    Args:
        table: Rows.
        results: Result of each training.
        seeds: Seeds of each row.

    Returns:
        One line a row. ``<score>`` is the mean over the seeds that did not diverge, None if there
        is none; ``<score>_std`` the sample standard deviation, None for fewer than two.
    """
    lines = []
    names = ["val_map", *table[0].trained.own.watched]
    for row in table:
        own = [results[row.trained, seed] for seed in seeds]
        kept = [(s, result) for s, result in zip(seeds, own, strict=True) if not result["diverged"]]
        values: dict[str, dict[int, float]] = {
            "test_map": {
                seed: result["test"]["map"]
                for seed, result in kept
                if result["test"]["map"] is not None
            },
            **{
                name: {
                    seed: result["history"][-1][name]
                    for seed, result in kept
                    if name in result["history"][-1]
                }
                for name in names
            },
        }
        line: dict[str, Any] = {"study": row.study, "row": row.label, "seeds": len(seeds)}
        line |= {"diverged": len(own) - len(kept), "parameters": own[0]["parameters"]}
        line["epochs"] = row.trained.loop.epochs
        for name in values:
            found = list(values[name].values())
            line[name] = statistics.fmean(found) if found else None
            line[f"{name}_std"] = statistics.stdev(found) if len(found) > 1 else None
        line["by_seed"] = values
        lines.append(line)
    return lines


def as_text(config: Config, table: Sequence[Mapping[str, Any]]) -> str:
    """The table for people; mAP in percent."""
    watched = config.own.watched
    headings = "".join(f"{heading:>17}" for heading in watched.values())
    lines = [f"{'':26}{'test mAP':>15}{'val mAP':>15}{headings}{'parameters':>12}"]
    study = ""
    for line in table:
        if line["study"] != study:
            study = line["study"]
            lines.append(study)
        cells = [f"{_spread(line, name, 100, 2):>15}" for name in ("test_map", "val_map")]
        cells += [f"{_spread(line, name, 1, 3):>17}" for name in watched]
        note = f"  {line['diverged']} of {line['seeds']} diverged" if line["diverged"] else ""
        lines.append(f"  {line['row']:24}{''.join(cells)}{line['parameters']:>12,}{note}")
    seeds = counted(config.ablate.seeds, "seed")
    lines.append(
        f"{config.dataset} {config.test_split}, weights of the last epoch; mAP in percent;\n"
        f"mean ± standard deviation over {seeds} of the initial weights"
    )
    return "\n".join(lines)


def _spread(line: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
    mean, std = line[name], line[f"{name}_std"]
    if mean is None:
        return "-"
    text = f"{scale * mean:.{digits}f}"
    return text if std is None else f"{text} ± {scale * std:.{digits}f}"


def _write(config: Config, plan: _Plan, table: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Table as CSV and JSON, and its picture."""
    from dclip.store.paths import atomic_write, write_text
    from pipeline.features.plan import warnings_of
    from pipeline.pictures import figures
    from pipeline.pictures.canvas import save
    from pipeline.records.provenance import git_commit

    plan.folder.mkdir(parents=True, exist_ok=True)
    flat = [{key: value for key, value in line.items() if key != "by_seed"} for line in table]
    sheet, data = plan.folder / "ablation.csv", plan.folder / "ablation.json"
    with atomic_write(sheet) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    about = {
        "config": config.model_dump(mode="json"),
        "commit": git_commit(),
        "warnings": warnings_of(config),
        "rows": table,
    }
    write_text(data, json.dumps(about, indent=1))
    picture = plan.folder / "ablation.png"
    save(figures.ablation(table, config.own.watched), picture)
    return [sheet, data, picture]


def _record(
    plan: _Plan,
    tracker: "Tracker",
    trial: Trial,
    result: Mapping[str, Any],
) -> None:
    """The MLflow child run of one training; what it holds already is left as it is."""
    from pipeline.records.tracking import flat
    from pipeline.stages.train import metric_names

    label = next(f"{row.study}: {row.label}" for row in plan.rows if row.trained == trial.trained)
    tags = {"dclip.stage": "ablate", "dclip.study": label.split(":")[0]}
    child = tracker.open(
        f"{label}, seed {trial.seed}",
        key=f"{plan.name}/{trial.name}",
        parent=plan.name,
        tags=tags,
    )
    loop, own = trial.trained.loop.loop.model_dump(), trial.trained.own
    child.params(
        {**flat(loop, "train."), **flat(own.model_dump(), f"{own.name}."), "seed": trial.seed}
    )
    for line in result["history"]:
        child.metrics(metric_names(line), step=int(line["epoch"]))
    final = {
        f"test/{key}": value
        for key, value in result["test"].items()
        if key != "ap" and value is not None
    }
    child.metrics(final, step=len(result["history"]))
    child.close("FAILED" if result["diverged"] else "FINISHED")


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    from pipeline.features.plan import is_complete

    plan = _Plan(config)
    done = plan.done()
    left = [trial for trial in plan.trials.values() if trial not in done]
    state = {True: "complete", False: "not extracted yet"}
    lines = [
        f"features {plan.train.folder} ({state[is_complete(plan.train)]})",
        f"scored on {plan.test.folder} ({state[is_complete(plan.test)]})",
        f"{plan.name}: {len(plan.rows)} rows, {len(plan.trials)} trainings of seeds "
        f"{plan.seeds[0]} to {plan.seeds[-1]}, {len(done)} done; the others in "
        f"{len(packs(left, config.ablate.pack))} packs",
    ]
    lines += [
        f"  {row.study:18} {row.label:22} {row.trained.loop.epochs} epochs, preset "
        f"{row.trained.loop.preset}"
        for row in plan.rows
    ]
    return "\n".join(lines)
