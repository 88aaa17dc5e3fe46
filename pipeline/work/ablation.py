"""An ablation at work: the table of its results, its picture, MLflow."""

import csv
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip.store.paths import atomic_write, write_text
from dclip.words import counted
from pipeline.features.backbone import warnings_of
from pipeline.pictures import figures
from pipeline.pictures.canvas import save
from pipeline.records.ablations import Ablation, Result
from pipeline.records.provenance import git_commit
from pipeline.records.tracking import Tracker
from pipeline.settings.config import Config
from pipeline.settings.rows import Row
from pipeline.terminal.cli import Report
from pipeline.terminal.table import Column, aligned
from pipeline.work.row_trainings import check_rows, complete


def run(config: Config, plan: Ablation) -> Report:
    """Train what is missing, write table and picture, record all in MLflow, print the table.

    Args:
        config: Settings.
        plan: What they ask for.

    Raises:
        StageError: The splits have other classes, a row is bound to fail, or a process fails.
    """
    started = time.perf_counter()
    check_rows(config, plan, "ablate")
    tracker = Tracker(config)
    with tracker.run(plan.name, key=plan.name, tags={"dclip.stage": "ablate"}) as tracked:
        tracked.params({f"ablate.{k}": v for k, v in config.ablate.model_dump().items()})
        source = f"{config.dataset_slug}-{config.train_split}"
        tracked.dataset(source, plan.train.folder, plan.train.fingerprint, "training")
        results, trained_now = complete(config, plan, tracker, "ablate", config.ablate.pack)
        table = summary(plan.rows, plan.by_row(results), plan.seeds)
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
        "trained_now": trained_now,
        "files": [str(path) for path in files],
        "seconds": round(time.perf_counter() - started, 2),
    }


def summary(
    table: Sequence[Row],
    results: Sequence[Sequence[Result]],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Every row with its scores, seed by seed, and their mean and standard deviation.

    Args:
        table: Rows.
        results: Of each row, seed by seed.
        seeds: Seeds of each row.

    Returns:
        One line a row. ``<score>`` is the mean over the seeds that did not diverge, None if there
        is none; ``<score>_std`` the sample standard deviation, None for fewer than two.
    """
    lines = []
    names = ["val_map", *table[0].trained.own.watched]
    for row, own in zip(table, results, strict=True):
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
    columns = [
        Column("", width=26, is_left=True),
        Column("test mAP", width=13),
        Column("val mAP", width=13),
        *(Column(heading, width=15) for heading in watched.values()),
        Column("parameters", ",", width=10),
        Column("", is_left=True),
    ]
    rows: list[list[Any]] = []
    study = ""
    for line in table:
        if line["study"] != study:
            study = line["study"]
            rows.append([study, *[""] * (len(columns) - 1)])
        note = f"{line['diverged']} of {line['seeds']} diverged" if line["diverged"] else ""
        rows.append(
            [
                f"  {line['row']}",
                *(_spread(line, name, 100, 2) for name in ("test_map", "val_map")),
                *(_spread(line, name, 1, 3) for name in watched),
                line["parameters"],
                note,
            ]
        )
    lines = aligned(columns, rows)
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


def _write(config: Config, plan: Ablation, table: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Table as CSV and JSON, and its picture."""
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
