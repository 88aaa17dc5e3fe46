"""The trials of a sweep, best first: their table, their picture, and the best in words.

A row is a dictionary: number, swept values, ``val_map`` (None where it failed), what was watched,
epochs, error, and how its weights are found again.
"""

import csv
import math
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip.pictures.canvas import save
from dclip.store.paths import atomic_write
from dclip.words import counted
from pipeline.pictures import figures
from pipeline.records.tracking import Tracker
from pipeline.settings.config import Config, as_flags
from pipeline.settings.space import MOST_SHOWN, SEED, Entry, label, leaf, shown, space_of, text_of
from pipeline.settings.training import at
from pipeline.terminal.table import Column, aligned

# of a row: how its weights are found again, and whether the same command trains it again
_INTERNAL = ("pack", "position", "again")


def told_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of a trial."""
    return {key: value for key, value in row.items() if key not in _INTERNAL}


def entry_of(row: Mapping[str, Any]) -> Entry:
    """The trial that a row is of."""
    return row["pack"][row["position"]]  # type: ignore[no-any-return]


def settings_of(config: Config, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial was trained with: all that was swept, and what the method proposes to sweep."""
    point = entry_of(row).point
    own = at(config, point).own
    values = own.model_dump(mode="json")
    return {**{f"{own.name}.{key}": values[key] for key in own.sweep_space}, **point}


def model_name(config: Config) -> str:
    """Name of the registered model."""
    return f"dclip-{config.dataset_slug}"


def write(config: Config, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Table of all trials as CSV, and, if any has a score, its picture."""
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
    drawn = [{key: _drawn(value) for key, value in row.items()} for row in done]
    save(figures.sweep_trials(drawn, space_of(config), color=color), picture)
    return [table, picture]


def _drawn(value: object) -> object:
    """A value as an axis can show it."""
    return shown(value) if isinstance(value, list | dict) else value


def print_table(config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
    """The best trials, and a line on how many more there are."""
    keys, watched = list(space_of(config)), config.own.watched
    columns = [
        *(Column(_heading(config, key)) for key in keys),
        Column("val mAP", ".1f", times=100),
        *(Column(heading, ".3f") for heading in watched.values()),
        Column("epochs"),
        Column("", is_left=True),
    ]
    cells = [
        (
            *(shown(row[key]) for key in keys),
            row["val_map"],
            *(row[key] for key in watched),
            row["epochs"],
            row["error"] and "failed: " + row["error"],
        )
        for row in rows[:MOST_SHOWN]
    ]
    lines = aligned(columns, cells)
    if len(rows) > MOST_SHOWN:
        failed = sum(row["val_map"] is None for row in rows[MOST_SHOWN:])
        lines.append(f"and {len(rows) - MOST_SHOWN} more, {failed} of them failed")
    sys.stdout.write("\n".join(lines) + "\n")


def _heading(config: Config, key: str) -> str:
    """What stands above the column of a swept key."""
    field = type(config.own).model_fields.get(key.removeprefix(f"{config.own.name}."))
    return (field and field.title) or leaf(key)


def print_results(config: Config, files: Sequence[Path], words: str, tracker: Tracker) -> None:
    """The best in words, the files, and where to compare the trials."""
    lines = [str(path) for path in files]
    name = files[0].parent.name
    model = tracker.model_uri(model_name(config), name)
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
    settings = ", ".join(
        f"{key}={shown(value)}" for key, value in settings_of(config, best).items()
    )
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

    def setting(row: Mapping[str, Any]) -> str:
        return text_of({key: row[key] for key in keys})

    groups: dict[str, list[float]] = {}
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
