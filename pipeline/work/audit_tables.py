"""What an audit found as rows of tables, and as the labels that it suggests."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dclip.words import counted
from pipeline.features.plan import FeaturePlan
from pipeline.features.shown import path_of_image
from pipeline.records import labels_table
from pipeline.work.audit import Audited

log = logging.getLogger(__name__)

_WHY = {1: "wrong", 0: "missing"}


def tables_of(plans: Mapping[str, FeaturePlan], found: Audited) -> dict[str, list[dict[str, Any]]]:
    """Rows of every table by its name.

    Args:
        plans: Of the splits by name, that which was looked over first.
        found: In it.
    """
    plan = next(iter(plans.values()))
    return {
        "label_issues": issue_rows(plan, found),
        "suggestions": suggestion_rows(plan, found),
        "copies": copy_rows(plans, found),
        "stealing": [asdict(pair) for pair in found.taking],
    }


def _place(plan: FeaturePlan, index: int) -> str:
    return str(path_of_image(plan.listing, index) or "")


def issue_rows(plan: FeaturePlan, found: Audited) -> list[dict[str, Any]]:
    """Labels that are likely wrong, the likeliest first."""
    issues, reader = found.issues, found.reader
    rows = []
    each = zip(issues.rows.tolist(), issues.columns.tolist(), issues.given.tolist(), strict=True)
    for rank, (row, column, given) in enumerate(each, 1):
        rows.append(
            {
                "rank": rank,
                "key": reader.keys[row],
                "class": reader.class_names[column],
                "why": _WHY[given],
                "given": given,
                "probability": float(found.probabilities[row, column]),
                "path": _place(plan, int(reader.indices[row])),
            }
        )
    return rows


def suggestion_rows(plan: FeaturePlan, found: Audited) -> list[dict[str, Any]]:
    """Unknown labels of which scores are sure, the surest first."""
    reader = found.reader
    rows = [
        {
            "key": reader.keys[row],
            "class": reader.class_names[column],
            "suggested": int(found.suggested[row, column]),
            "probability": float(found.probabilities[row, column]),
            "path": _place(plan, int(reader.indices[row])),
        }
        for row, column in (found.suggested != -1).nonzero().tolist()
    ]
    return sorted(rows, key=lambda one: -abs(one["probability"] - 0.5))


def copy_rows(plans: Mapping[str, FeaturePlan], found: Audited) -> list[dict[str, Any]]:
    """Pairs of copies, those in two splits first."""
    rows = []
    for one in sorted(found.copies, key=lambda copy: not copy.is_leak):
        own: dict[str, Any] = {"leak": one.is_leak}
        for number, seen in enumerate((one.first, one.second), 1):
            own[f"split_{number}"] = seen.split
            own[f"key_{number}"] = seen.key
            own[f"path_{number}"] = _place(plans[seen.split], seen.index)
        own |= {"agreement": one.agreement, "cosine": one.cosine, "same_bytes": one.same_bytes}
        rows.append(own)
    return rows


def write_corrected(place: Path, plan: FeaturePlan, found: Audited) -> None:
    """A table of the labels as they are given, but for what is suggested."""
    reader, issues = found.reader, found.issues
    labels: np.ndarray = reader.labels.numpy().astype(np.int8)
    labels[issues.rows, issues.columns] = 1 - issues.given
    suggested = found.suggested.numpy()
    labels = np.where(suggested != -1, suggested, labels)
    images = [path_of_image(plan.listing, int(index)) for index in reader.indices]
    files = labels_table.files_below(place, images, flag="--write-labels")
    labels_table.write_labels(place, files, reader.class_names, labels)
    log.info(
        "audit: %s has the labels of %s with what is suggested",
        place, counted(len(files), "image"),
    )  # fmt: skip
