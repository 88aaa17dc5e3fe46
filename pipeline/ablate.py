"""Which part of the method does what: trainings that differ from the recipe in one thing each.

Trainings that can share passes over the features do (:class:`dclip.fitting.pack.Pack`); a Ray task
fits such a pack and scores it on the test split, and each result is a small file. So an ablation
that was stopped goes on, and more seeds or rows train only what is new.
"""

import csv
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dclip.fitting.loop import Loop
from dclip.methods.settings import DCLIPSettings
from dclip.words import counted
from pipeline.cli import Report, main
from pipeline.config import Config, EvaluateConfig, TrainConfig
from pipeline.errors import StageError, UsageError, told
from pipeline.space import Trained, alike

if TYPE_CHECKING:
    from pipeline.features import FeaturePlan
    from pipeline.tracking import Tracker

log = logging.getLogger(__name__)

DESCRIPTION = """\
Take the method apart: train it without MFI, with other losses, orders of pooling and sizes.

examples:
  python -m pipeline.ablate                                 all studies, three seeds
  python -m pipeline.ablate --studies losses,pooling --seeds 5 --epochs 10
  python -m pipeline.ablate --studies mfi_weight --mfi-weight 0,0.03,0.1,0.3
Each row differs from the settings of `train` in one thing and is trained once a seed. Seeds vary
the initial weights; shuffle and held-out images stay those of --train.data-seed. The table gives
mean and standard deviation over seeds of the test split's mAP by the weights of the last epoch (the
test split chooses nothing and is looked at once, at the end), of val/map, and of the inter-class
cosine. Finished trainings are kept: the same command goes on after a stop, more seeds add to it."""

BASE = "DCLIP"
_SCORES = ("test_map", "val_map", "inter_class_cosine")


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


def rows(config: Config, embed_dim: int) -> list[Row]:
    """All lines of the table, study by study; the recipe itself is one of each.

    Args:
        config: Settings; ``train`` is the recipe, ``ablate`` says what is changed.
        embed_dim: Width of CLIP's joint space.

    Raises:
        UsageError: The recipe has no MFI, so that there is nothing to take away.
    """
    wanted = config.ablate
    epochs = {} if wanted.epochs is None else {"epochs": wanted.epochs}
    fixed = {"selection": "last", **epochs}
    own = config.own
    if not isinstance(own, DCLIPSettings):
        raise UsageError(f"ablations are of dclip, not of {own.name}")
    base = Trained(config.train.model_copy(update=fixed), own)
    if own.mfi_weight == 0:
        raise UsageError("ablations need an MFI to take away; --dclip.mfi-weight must be above 0")
    own_dim = own.output_dim or embed_dim // 2
    dims = wanted.output_dim or [max(2, embed_dim // part) for part in (8, 4, 2, 1)]
    lambdas = wanted.redundancy_weight or _times(own.redundancy_weight, (0, 0.2, 1, 5))
    alphas = wanted.mfi_weight or _times(own.mfi_weight, (0, 0.1, 1, 10))

    def changed(**changes: Any) -> Trained:
        return base._replace(own=own.model_copy(update=changes))

    def preset(name: str) -> Trained:
        values = own.presets[name]
        train = {**config.train.model_dump(include=_PLACE), **values.loop, **fixed, "preset": name}
        return Trained(TrainConfig.model_validate(train), DCLIPSettings.model_validate(values.own))

    studies: dict[str, dict[str, Trained]] = {
        "losses": {
            f"{BASE}: ASL + MFI": base,
            "ASL only": changed(mfi_weight=0.0),
            "BCE + MFI": changed(gamma_neg=0.0, gamma_pos=0.0, clip=0.0),
            "focal (2) + MFI": changed(gamma_neg=2.0, gamma_pos=2.0, clip=0.0),
        },
        "pooling": {
            "project, then pool": changed(aggregation="project_then_pool"),
            "pool, then project": changed(aggregation="pool_then_project"),
        },
        "output_dim": {
            f"d' = {dim}": base if dim == own_dim else changed(output_dim=dim)
            for dim in sorted({*dims, own_dim})
        },
        "redundancy_weight": {
            f"lambda = {value:g}": changed(redundancy_weight=value)
            for value in sorted({*lambdas, own.redundancy_weight})
        },
        "mfi_weight": {
            f"alpha = {value:g}": changed(mfi_weight=value)
            for value in sorted({*alphas, own.mfi_weight})
        },
        "presets": {
            "author": preset("author"),
            "robust": preset("robust"),
        },
    }
    return [
        Row(study, label, trained)
        for study in dict.fromkeys(wanted.studies)
        for label, trained in studies[study].items()
    ]


def _times(value: float, factors: Sequence[float]) -> list[float]:
    """Multiples without rounding noise."""
    return [float(f"{value * factor:.6g}") for factor in factors]


# of the section train: where and how, not what
_PLACE = {*TrainConfig.model_fields} - {*Loop.model_fields}


def _identity(trained: Trained) -> dict[str, Any]:
    """What tells a training from others; settings at their defaults are left out."""
    return {
        "loop": trained.loop.loop.model_dump(exclude={"preset"}, exclude_defaults=True),
        "method": trained.own.name,
        "settings": trained.own.model_dump(exclude_defaults=True),
    }


class _Plan:
    """What an ablation trains, on what, and where results go."""

    def __init__(self, config: Config) -> None:
        from dclip.shards import digest
        from pipeline.features import describe_backbone, open_labelled, plan_features

        open_labelled(config, config.test_split)  # before a backbone is loaded
        self.train: FeaturePlan = plan_features(config, config.train_split)
        self.test: FeaturePlan = plan_features(config, config.test_split)
        self.rows = rows(config, describe_backbone(config).embed_dim)
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
            (trained, seed): Trial(
                trained, seed, digest({**shared, **_identity(trained), "seed": seed})[:16]
            )
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
    from pipeline import cluster
    from pipeline.features import open_features
    from pipeline.tracking import Tracker

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
            kind = find_method(row.trained.own.name)
            kind.check(row.trained.own, row.trained.loop, len(reader.class_names))
        except ValueError as error:
            raise StageError(f"row {row.label!r}: {error}") from None
    check_source(len(reader.class_names), reader, np.arange(len(reader)))
    check_loop(plan.rows[0].trained.loop, reader, None)
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

    from dclip.paths import write_text
    from pipeline import cluster
    from pipeline.progress import progress

    device, why = cluster.choose_device(config.device)
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
        "precision": config.train.precision,
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
    from dclip.fitting.pack import Pack
    from dclip.methods.method import Task
    from dclip.methods.registry import find_method
    from pipeline.cache import cached_features
    from pipeline.evaluate import measure
    from pipeline.features import open_features
    from pipeline.provenance import git_commit
    from pipeline.train import use_precision

    history: list[list[EpochReport]] = []
    output, device = Path(settings["output"]), torch.device(settings["device"])
    use_precision(settings["precision"], settings["device"])
    with cached_features(settings["features"], output, cache=settings["cache"], device=device) as (
        reader,
        features,
    ):
        training = Pack(
            find_method(pack[0].trained.own.name),
            [trial.trained.own for trial in pack],
            pack[0].trained.loop.loop,
            Task.of_features(reader.class_names, *reader.text_features()),
            seeds=[trial.seed for trial in pack],
            device=device,
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
                    seed: result["history"][-1][key]
                    for seed, result in kept
                    if key in result["history"][-1]
                }
                for name, key in (("val_map", "val_map"), ("inter_class_cosine",) * 2)
            },
        }
        line: dict[str, Any] = {"study": row.study, "row": row.label, "seeds": len(seeds)}
        line |= {"diverged": len(own) - len(kept), "parameters": own[0]["parameters"]}
        line["epochs"] = row.trained.loop.epochs
        for name in _SCORES:
            found = list(values[name].values())
            line[name] = statistics.fmean(found) if found else None
            line[f"{name}_std"] = statistics.stdev(found) if len(found) > 1 else None
        line["by_seed"] = values
        lines.append(line)
    return lines


def as_text(config: Config, table: Sequence[Mapping[str, Any]]) -> str:
    """The table for people; mAP in percent."""
    lines = [f"{'':26}{'test mAP':>15}{'val mAP':>15}{'cosine':>17}{'parameters':>12}"]
    study = ""
    for line in table:
        if line["study"] != study:
            study = line["study"]
            lines.append(study)
        cells = [
            _spread(line, "test_map", 100, 2),
            _spread(line, "val_map", 100, 2),
            _spread(line, "inter_class_cosine", 1, 3),
        ]
        note = f"  {line['diverged']} of {line['seeds']} diverged" if line["diverged"] else ""
        lines.append(
            f"  {line['row']:24}{cells[0]:>15}{cells[1]:>15}{cells[2]:>17}{line['parameters']:>12,}"
            + note
        )
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
    from dclip.paths import atomic_write, write_text
    from pipeline import figures
    from pipeline.canvas import save
    from pipeline.features import warnings_of
    from pipeline.provenance import git_commit

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
    save(figures.ablation(table), picture)
    return [sheet, data, picture]


def _record(
    plan: _Plan,
    tracker: "Tracker",
    trial: Trial,
    result: Mapping[str, Any],
) -> None:
    """The MLflow child run of one training; what it holds already is left as it is."""
    from pipeline.tracking import flat
    from pipeline.train import metric_names

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
    from pipeline.features import is_complete

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


if __name__ == "__main__":
    sys.exit(main("ablate"))
