"""A comparison at work: one table of what methods reach and cost, its pictures, MLflow."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip.metrics import harmonic_mean, paired_interval
from dclip.pictures.canvas import heading, save
from dclip.words import counted
from pipeline.features.backbone import warnings_of
from pipeline.pictures import comparison_figures as figures
from pipeline.pictures.looks import title_of
from pipeline.records.ablations import Comparison, Result
from pipeline.records.report import remarks
from pipeline.settings.config import Config
from pipeline.settings.rows import Point, Row
from pipeline.settings.space import leaf
from pipeline.terminal.cli import Report
from pipeline.terminal.table import Column, aligned
from pipeline.work.row_trainings import RowTable, run_rows, spread

_TEST = {
    "test_map": "map",
    "cf1": "cf1",
    "of1": "of1",
    "class_precision": "class_precision",
    "ece": "ece",
}
"""Scores of the table, with what results call them."""

_MEASURED = (*_TEST, "class_cosine", "seconds")


def run(config: Config, plan: Comparison) -> Report:
    """Train what is missing, write table and pictures, record all in MLflow, print the table.

    Args:
        config: Settings.
        plan: What they ask for.

    Raises:
        StageError: The splits have other classes, a row is bound to fail, or a process fails.
    """
    table = RowTable("compare", config.compare.pack, summary, as_text, _draw)
    return run_rows(config, plan, table)


def summary(
    rows: Sequence[Row], results: Sequence[Sequence[Result]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Every row with its scores, seed by seed, their mean and deviation, and what it gains.

    Args:
        rows: Lines of the table.
        results: Of each row, seed by seed; of what is not trained the same for each.
        seeds: Seeds of each row.

    Returns:
        One line a row. ``<score>`` is the mean over the seeds that did not diverge, None if there
        is none; ``<score>_std`` the sample standard deviation, None for fewer than two.
        ``difference`` is the mean of what its mAP is above that of the row it is compared with, of
        the same seeds; its 95 % interval is None for fewer than two seeds, and where all seeds
        give the same. Under a protocol it is of top-1 accuracy, and where classes are parted of
        each seed's harmonic mean; ``harmonic`` is the harmonic mean of the two averages, and
        ``not_asked`` says why new classes have no accuracy.
    """
    protocol = rows[0].trained.subset.protocol
    measured, leading = _MEASURED, "test_map"
    if protocol is not None:
        leading = "harmonic" if protocol == "base_to_new" else "top1"
        measured = (*_accuracies(protocol), *_MEASURED)
    scores = [
        {
            seed: value
            for seed, result in zip(seeds, own, strict=True)
            if not result["diverged"] and (value := _value(result, leading)) is not None
        }
        for own in results
    ]
    place = {(str(row.point), row.study, row.label): n for n, row in enumerate(rows)}
    lines = []
    for number, (row, own) in enumerate(zip(rows, results, strict=True)):
        is_trained = row.trained.own.trained_by is not None
        count = len(own) if is_trained else 1
        kept = [one for one in zip(seeds, own, strict=True) if not one[1]["diverged"]][:count]
        point = None if row.point is None else str(row.point)
        line: dict[str, Any] = {"study": row.study, "point": point, "row": row.label}
        line |= {"method": row.method, "seeds": count, "diverged": count - len(kept)}
        by_seed: dict[str, dict[int, float]] = {}
        for name in measured:
            values = {seed: _value(result, name) for seed, result in kept}
            found = {seed: value for seed, value in values.items() if value is not None}
            by_seed[name] = found
            line[name] = statistics.fmean(found.values()) if found else None
            line[f"{name}_std"] = statistics.stdev(found.values()) if len(found) > 1 else None
        if protocol == "base_to_new":
            base, new = line["top1"], line["top1_new"]
            line["harmonic"] = None if base is None or new is None else harmonic_mean(base, new)
            line["not_asked"] = own[0].get("not_asked")
        line["parameters"] = own[0]["parameters"]
        line["together"] = max(result["together"] for result in own)
        line["peak_bytes"] = max(result["peak"]["bytes"] for result in own)
        line["peak_of"] = own[0]["peak"]["of"]
        line |= {"against": row.against}
        line |= dict.fromkeys(("difference", "difference_low", "difference_high"))
        if row.against is not None:
            other = place[str(row.point), row.study, row.against]
            pairs = [
                scores[number][seed] - scores[other][seed]
                for seed in seeds
                if seed in scores[number] and seed in scores[other]
            ]
            line["difference"] = statistics.fmean(pairs) if pairs else None
            if len(set(pairs)) > 1:  # else seeds say nothing
                _, line["difference_low"], line["difference_high"] = paired_interval(pairs)
        line["by_seed"] = by_seed
        lines.append(line)
    return lines


def _accuracies(protocol: str) -> tuple[str, ...]:
    """What a protocol measures, the harmonic mean last."""
    return ("top1", "top1_new", "harmonic") if protocol == "base_to_new" else ("top1",)


def _value(result: Mapping[str, Any], name: str) -> float | None:
    value: float | None
    test = result["test"]
    if name == "harmonic":
        base, new = test.get("top1"), test.get("top1_new")
        return None if base is None or new is None else harmonic_mean(base, new)
    if name in ("top1", "top1_new"):
        value = test.get(name)
    else:
        value = test.get(_TEST[name]) if name in _TEST else result[name]
    return value


def as_text(config: Config, table: Sequence[Mapping[str, Any]]) -> str:
    """The table for people; scores in percent."""
    accuracies = [name for name in ("top1", "top1_new", "harmonic") if name in table[0]]
    titles = ("accuracy",) if len(accuracies) == 1 else ("base", "new", "H")
    scores = {"test_map": 2} if accuracies else {"test_map": 2, "cf1": 1, "of1": 1}
    scores |= {"ece": 1} if accuracies else {"class_precision": 1, "ece": 1}
    named = {"test_map": "mAP", "cf1": "CF1", "of1": "OF1", "class_precision": "C-P", "ece": "ECE"}
    compared = "mAP" if not accuracies else titles[-1]
    columns = [
        Column("", width=26, is_left=True),
        *(Column(title, width=12) for title, _ in zip(titles, accuracies, strict=False)),
        *(Column(named[name], width=12 if name == "test_map" else 11) for name in scores),
        Column("cosine", width=13),
        Column(f"difference of {compared}", width=22),
        Column("parameters", ",", width=10),
        Column("seconds", ".1f", width=7),
        Column("MB", ",.0f", times=1e-6, width=6),
        Column("", is_left=True),
    ]
    rows: list[list[Any]] = []
    group = ""
    for line in table:
        own = line["point"] or line["study"]
        if own != group:
            group = own
            rows.append([group, *[""] * (len(columns) - 1)])
        note = f"{line['diverged']} of {line['seeds']} diverged" if line["diverged"] else ""
        if line.get("not_asked"):
            note = "; ".join(filter(None, [note, line["not_asked"]]))
        rows.append(
            [
                f"  {title_of(line['row'])}",
                *(_accuracy(line, name) for name in accuracies),
                *(spread(line, name, 100, digits) for name, digits in scores.items()),
                spread(line, "class_cosine", 1, 3),
                _gain(line),
                line["parameters"],
                line["seconds"],
                line["peak_bytes"],
                note,
            ]
        )
    seeds = counted(config.compare.seeds, "seed")
    memory = ", ".join(dict.fromkeys(line["peak_of"] for line in table))
    together = max(line["together"] for line in table)
    partners = {line["against"] for line in table if line["against"] is not None}
    partner = title_of(partners.pop()) if len(partners) == 1 else "the row each is compared with"
    notes = [
        "CF1, OF1: F1 from means over classes and from pooled counts; C-P: mean precision of "
        f"classes; predicted above {config.evaluate.threshold:g}"
    ]
    if accuracies:
        notes = ["accuracy: the class of an image has the highest score, and has it alone; shots "
                 "drawn as Dassl draws them, none held out"]  # fmt: skip
    if len(accuracies) > 1:
        notes = ["base, new: accuracy of the classes that were trained, among them, and of the "
                 "others, among them; H: harmonic mean of the two averages; its difference is the "
                 "mean of each seed's; all else is of the base", *notes]  # fmt: skip
    return "\n".join(
        [
            *aligned(columns, rows),
            f"{config.dataset} {config.test_split}, weights of the last epoch; scores in percent; "
            f"mean ± standard deviation over {seeds}; what is not trained has one value",
            f"difference: {compared} less that of {partner}, of the same seeds, with the 95 % "
            "interval of the mean (Student's t), unless all seeds give the same",
            *notes,
            "ECE: expected calibration error of all pairs of image and class, 15 bins; cosine: "
            "mean between the texts of different classes",
            f"seconds: of training, on one CPU or GPU, of up to {together} trainings together "
            f"divided by their number; MB: the most memory of all seeds ({memory})",
            *remarks(warnings_of(config)),
        ]
    )


def _accuracy(line: Mapping[str, Any], name: str) -> str:
    """An accuracy with its deviation; the harmonic mean of averages has none."""
    if name == "harmonic":
        return "-" if line[name] is None else f"{100 * line[name]:.2f}"
    return spread(line, name, 100, 2)


def _gain(line: Mapping[str, Any]) -> str:
    mean, low, high = (line[f"difference{end}"] for end in ("", "_low", "_high"))
    if mean is None:
        return "-"
    text = f"{100 * mean:+.2f}"
    return text if low is None else f"{text} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _draw(config: Config, plan: Comparison, table: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The table's pictures."""
    files = []
    seeds = counted(config.compare.seeds, "seed")
    title = f"{config.dataset} {config.test_split}, {plan.test.num_images:,} images, {seeds}"
    title = heading(title, *warnings_of(config))
    studies = dict.fromkeys((row.study, row.point and row.point.key) for row in plan.rows)
    for study, key in studies:
        own = [line for line in table if line["study"] == study]
        of_key = (row.point for row in plan.rows if row.point and row.point.key == key)
        points = list({str(point): point for point in of_key}.values())
        if "top1" in own[0]:
            values = _places(points, plan.train.num_images)
            across = _across(key, [point.value for point in points]) if key else ""
            figure = figures.accuracies(own, across, values, title)
            words = "" if len(studies) == 1 else f"-{_slug(study)}"
        elif key is None:
            figure = figures.costs(own, title)
            words = "" if len(studies) == 1 else f"-{_slug(study)}"
        else:
            places = _places(points, plan.train.num_images)
            across = _across(key, [point.value for point in points])
            figure, words = figures.curves(own, across, places, title), f"-{_slug(study)}"
        picture = plan.folder / f"comparison{words}.png"
        save(figure, picture)
        files.append(picture)
    return files


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)


def _places(points: Sequence[Point], images: int) -> list[Any]:
    """Where points are on their axis: numbers, or texts where one of them has none."""
    found: list[Any] = []
    for point in points:
        is_all = leaf(point.key) == "num_images" and point.value is None
        try:
            found.append(images if is_all else float(str(point.value).removeprefix("x")))
        except ValueError:
            return [str(point).partition(" = ")[2] for point in points]
    return found


_AXES = {
    "num_images": "training images",
    "shots": "images per class",
    "label_fraction": "share of labels that are known",
    "label_noise": "share of labels that are wrong",
    "lr": "learning rate",
}


def _across(key: str, values: Sequence[Any]) -> str:
    """What is varied, in words."""
    name = _AXES.get(leaf(key), leaf(key).replace("_", " "))
    is_relative = any(isinstance(value, str) and value.startswith("x") for value in values)
    return f"{name}, as a multiple of the row's own" if is_relative else name
