"""The rows of a table at work: packs as Ray tasks, a small file and MLflow run each, the table."""

import csv
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import ray

from dclip.fitting.batches import FeatureSource
from dclip.fitting.drawn import classes_of, part_of
from dclip.fitting.fit import check_loop, check_source
from dclip.methods.registry import find_method
from dclip.provenance import git_commit
from dclip.store.paths import atomic_write, write_text
from dclip.words import told
from pipeline.cluster import session as cluster
from pipeline.cluster.device import choose_device
from pipeline.features.backbone import clip_of, warnings_of
from pipeline.features.opened import open_features
from pipeline.records.ablations import Result, RowPlan, Training, packs
from pipeline.records.tracking import Tracker
from pipeline.records.trainings import flat, metric_names
from pipeline.settings.config import Config
from pipeline.settings.rows import Row
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress
from pipeline.work.packs import Job
from pipeline.work.workers import fit_and_score, score_alone

log = logging.getLogger(__name__)

P = TypeVar("P", bound=RowPlan)
Line = dict[str, Any]
"""A line of a table, as CSV and JSON have it; only the latter has ``by_seed``."""


@dataclass(frozen=True)
class RowTable(Generic[P]):
    """What a stage makes of the results of its rows.

    Attributes:
        stage: Its name.
        pack: Trainings that share one pass over the features, at most.
        summary: Lines of rows, of their results and of the seeds.
        as_text: Lines for people.
        draw: Pictures of lines; their files.
    """

    stage: str
    pack: int
    summary: Callable[[Sequence[Row], Sequence[Sequence[Result]], Sequence[int]], list[Line]]
    as_text: Callable[[Config, Sequence[Line]], str]
    draw: Callable[[Config, P, Sequence[Line]], list[Path]]


def run_rows(config: Config, plan: P, table: RowTable[P]) -> Report:
    """Train what is missing, write table and pictures, record all in MLflow, print the table.

    Args:
        config: Settings.
        plan: What they ask for.
        table: What becomes of the results.

    Raises:
        StageError: The splits have other classes, a row is bound to fail, or a process fails.
    """
    started, stage = time.perf_counter(), table.stage
    check_rows(config, plan, stage)
    tracker = Tracker(config)
    with tracker.run(plan.name, key=plan.name, tags={"dclip.stage": stage}) as tracked:
        own = getattr(config, stage).model_dump()
        tracked.params({f"{stage}.{key}": value for key, value in own.items()})
        source = f"{config.dataset_slug}-{config.train_split}"
        tracked.dataset(source, plan.train.folder, plan.train.fingerprint, "training")
        results, trained_now = complete(config, plan, tracker, stage, table.pack)
        lines = table.summary(plan.rows, plan.by_row(results), plan.seeds)
        files = [*_write(config, plan, lines), *table.draw(config, plan, lines)]
        for path in files:
            tracked.artifact(path)
        tracked.text(config.model_dump_json(indent=1), "config.json")
    sys.stdout.write(f"{table.as_text(config, lines)}\n" + "".join(f"{path}\n" for path in files))
    sys.stdout.write(f"compare in MLflow: {tracker.ui_command}\n  {tracker.experiment_url()}\n")
    return {
        "stage": stage,
        "name": plan.name,
        "rows": lines,
        "trained_now": trained_now,
        "files": [str(path) for path in files],
        "seconds": round(time.perf_counter() - started, 2),
    }


def _write(config: Config, plan: RowPlan, lines: Sequence[Line]) -> list[Path]:
    """The table as CSV and JSON."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    flat = [{key: value for key, value in line.items() if key != "by_seed"} for line in lines]
    sheet, data = plan.folder / f"{plan.kind}.csv", plan.folder / f"{plan.kind}.json"
    with atomic_write(sheet) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    about = {
        "config": config.model_dump(mode="json"),
        "commit": git_commit(),
        "warnings": warnings_of(config),
        "rows": lines,
    }
    write_text(data, json.dumps(about, indent=1))
    return [sheet, data]


def spread(line: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
    """Mean and standard deviation of a score of a line, in words; ``-`` where there is none."""
    mean, std = line[name], line[f"{name}_std"]
    if mean is None:
        return "-"
    text = f"{scale * mean:.{digits}f}"
    return text if std is None else f"{text} ± {scale * std:.{digits}f}"


def check_rows(config: Config, plan: RowPlan, stage: str) -> None:
    """Refuse, before any work, features and rows that nothing could come of.

    Args:
        config: Settings.
        plan: Rows and features.
        stage: Name of the stage.

    Raises:
        StageError: Features are missing or damaged, the splits have other classes, or a row is
            bound to fail.
    """
    reader = open_features(plan.train.folders, config.output)
    test = open_features(plan.test.folders, config.output)
    if test.class_names != reader.class_names:
        raise StageError(
            f"splits {config.train_split} and {config.test_split} have other classes; {stage} "
            "scores the classes that are trained"
        )
    if any(row.trained.subset.protocol is not None for row in plan.rows):
        try:
            classes_of(test.labels)
        except ValueError as error:
            raise StageError(f"split {config.test_split}: {error}") from None
    for row in plan.rows:
        for remark in row.trained.own.remarks(row.trained.loop):
            log.warning("warning: row %r: %s", row.label, remark)
        try:
            _check_row(row, reader, reader.class_names, plan.seeds[0])
        except ValueError as error:
            raise StageError(f"row {row.label!r}: {error}") from None


def _check_row(row: Row, reader: FeatureSource, names: Sequence[str], seed: int) -> None:
    if row.trained.own.trained_by is None:
        return
    every = np.arange(len(reader.labels))
    left, rows, columns = part_of(row.trained.subset, reader, every, names, seed=seed)
    count = len(names) if columns is None else len(columns)
    check_source(count, left, rows)
    if row.trained.own.trained_by == "loop":
        find_method(row.method).check(row.trained.own, row.trained.loop, count)
        check_loop(row.trained.loop, left, None)


def complete(
    config: Config, plan: RowPlan, tracker: Tracker, stage: str, pack_size: int
) -> tuple[dict[str, Result], int]:
    """Results of all trainings of the rows; what is missing is trained. And how many were.

    Args:
        config: Settings.
        plan: Rows and features.
        tracker: The store, whose run of the plan's name is open.
        stage: Name of the stage.
        pack_size: Trainings that share one pass over the features, at most.

    Raises:
        StageError: A training fails.
    """
    results = plan.done()
    left = [one for name, one in plan.trainings.items() if name not in results]
    for name, result in results.items():
        _record(plan, tracker, stage, plan.trainings[name], result)
    if left:
        with cluster.ray_session(config):
            for training, result in _fit_all(config, plan, stage, packs(left, pack_size)):
                results[training.name] = result
                _record(plan, tracker, stage, training, result)
    return results, len(left)


def _fit_all(
    config: Config, plan: RowPlan, stage: str, todo: Sequence[Sequence[Training]]
) -> Iterator[tuple[Training, Result]]:
    """Run packs as Ray tasks, one a CPU or GPU; each result is kept, then given, as it comes."""
    device, why = choose_device(config.device)
    left = sum(map(len, todo))
    log.info(
        "%s: %s: %d trainings in %d packs on %s (%s)",
        stage, plan.name, left, len(todo), device, why,
    )  # fmt: skip
    need = {"num_cpus": 1, "num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    looped, alone = (ray.remote(**need)(task) for task in (fit_and_score, score_alone))
    running = {}
    for pack in todo:
        job = Job(
            pack[0].method,
            tuple(one.trained for one in pack),
            seeds=tuple(one.seed for one in pack),
            data_seed=config.data_seed,
            features=tuple(plan.train.folders),
            output=config.output.absolute(),
            clip=clip_of(config),
            images=plan.train.listing if pack[0].trained.own.sees_images() else None,
            draw_seed=pack[0].seed if pack[0].trained.subset.is_drawn else None,
        )
        task = looped if pack[0].is_looped else alone
        images = None if job.images is None else plan.test.listing
        ref = task.remote(job, device, plan.test.folders, config.evaluate.threshold, images)
        running[ref] = pack
    count = len(plan.trainings)
    with progress(stage, count, "trainings", count - left) as bar:
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            pack = running.pop(ready)
            try:
                results = ray.get(ready)
            except ray.exceptions.RayError as error:
                raise StageError(
                    f"{plan.name} failed: {told(cluster.cause(error))}; the same command goes on"
                ) from None
            for training, result in zip(pack, results, strict=True):
                path = plan.result_path(training.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(result, indent=1))
                yield training, result
            bar.advance(len(pack))


def _record(
    plan: RowPlan, tracker: Tracker, stage: str, training: Training, result: Mapping[str, Any]
) -> None:
    """The MLflow child run of one training; what it holds already is left as it is."""
    label = plan.label_of(training.name)
    tags = {"dclip.stage": stage, "dclip.study": label.split(":")[0]}
    own, subset = training.trained.own, training.trained.subset.identity()
    child = tracker.open(
        f"{label}, seed {training.seed}" if own.trained_by is not None else label,
        key=f"{plan.name}/{training.name}",
        parent=plan.name,
        tags=tags,
    )
    loop = training.trained.loop.loop.model_dump() if training.is_looped else {}
    child.params(
        {
            **flat(loop, "train."),
            **flat(own.model_dump(), f"{own.name}."),
            **flat(subset, "subset."),
            "seed": training.seed,
        }
    )
    for line in result["history"]:
        child.metrics(metric_names(line), step=int(line["epoch"]))
    final = {f"test/{key}": value for key, value in result["test"].items() if key != "ap"}
    final |= {
        "test/inter_class_cosine": result.get("class_cosine"),
        "cost/parameters": result["parameters"],
        "cost/seconds": result.get("seconds"),
        "cost/peak_bytes": result.get("peak", {}).get("bytes"),
    }
    numbers = {name: value for name, value in final.items() if value is not None}
    child.metrics(numbers, step=len(result["history"]) or None)
    child.close("FAILED" if result["diverged"] else "FINISHED")
