"""An ablation at work: the table of its results, its picture, MLflow."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip.pictures.canvas import save
from dclip.words import counted
from pipeline.pictures import figures
from pipeline.records.ablations import Ablation, Result
from pipeline.settings.config import Config
from pipeline.settings.rows import Row
from pipeline.terminal.cli import Report
from pipeline.terminal.table import Column, aligned
from pipeline.work.row_trainings import RowTable, run_rows, spread


def run(config: Config, plan: Ablation) -> Report:
    """Train what is missing, write table and picture, record all in MLflow, print the table.

    Args:
        config: Settings.
        plan: What they ask for.

    Raises:
        StageError: The splits have other classes, a row is bound to fail, or a process fails.
    """
    table = RowTable("ablate", config.ablate.pack, summary, as_text, _draw)
    return run_rows(config, plan, table)


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
                *(spread(line, name, 100, 2) for name in ("test_map", "val_map")),
                *(spread(line, name, 1, 3) for name in watched),
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


def _draw(config: Config, plan: Ablation, table: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The table's picture."""
    picture = plan.folder / "ablation.png"
    save(figures.ablation(table, config.own.watched), picture)
    return [picture]
