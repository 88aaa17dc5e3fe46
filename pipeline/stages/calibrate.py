"""Thresholds and probabilities of checkpoints, by images that they were not trained on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dclip.checkpoints.calibration import Calibration
from dclip.checkpoints.origin import read_about
from dclip.provenance import git_commit
from dclip.words import counted, percent
from pipeline.features.plan import FeaturePlan, is_complete, plan_features
from pipeline.records.choice import NoCheckpointError, given_files, own_checkpoint, take_checkpoint
from pipeline.records.report import StageReport, show
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError
from pipeline.terminal.pages import page
from pipeline.terminal.table import Column, aligned


@dataclass(frozen=True, kw_only=True)
class CalibrateReport(StageReport):
    """What checkpoints were given.

    Attributes:
        checkpoints: Files, and the calibration that each has now.
        images: What told.
        config: All settings.
        commit: Of the code.
        seconds: How long it took.
    """

    stage = "calibrate"

    checkpoints: dict[str, dict[str, Any]]
    images: str
    config: dict[str, Any]
    commit: str | None
    seconds: float


def run(config: Config) -> CalibrateReport:
    """Give checkpoints new thresholds, and print what these are worth."""
    from pipeline.work import calibrating

    started = time.perf_counter()
    plan, files = _plan(config), _files(config)
    for path in files:
        _require_fair(config, plan, path)
    found = {path: calibrating.recalibrate(config, plan, path) for path in files}
    report = CalibrateReport(
        checkpoints={str(path): one.model_dump(mode="json") for path, one in found.items()},
        images=_images(config, plan),
        config=config.model_dump(mode="json"),
        commit=git_commit(),
        seconds=round(time.perf_counter() - started, 2),
    )
    show(table(report))
    return report


def _plan(config: Config) -> FeaturePlan:
    return plan_features(config, config.calibrate.split or config.train_split)


def _files(config: Config) -> list[Path]:
    return given_files(config.calibrate.checkpoint, config) or [take_checkpoint(config)]


def _images(config: Config, plan: FeaturePlan) -> str:
    """The images that tell, in words."""
    if config.calibrate.split is None:
        return f"what {config.train.val_fraction:g} of {plan.listing.split} was held out"
    return f"all of {plan.listing.split}"


def _require_fair(config: Config, plan: FeaturePlan, path: Path) -> None:
    """Refuse images that a checkpoint may have been trained on.

    Raises:
        StageError: They are the training images, or nothing says which were held out.
    """
    about = read_about(path)
    if config.calibrate.split == config.train_split:
        raise StageError(
            f"--split {config.calibrate.split} is what is trained on; leave it out for the images "
            "that the training held out, or name another"
        )
    if config.calibrate.split is None and about.features != plan.fingerprint:
        raise StageError(
            f"checkpoint {path} was trained on other features ({about.features[:12]}) than those "
            f"of these settings ({plan.fingerprint[:12]}), so it is not known which images it held "
            "out; give the settings of its training, or another split by --split"
        )


def table(report: CalibrateReport) -> str:
    """What the thresholds are worth, for people."""
    columns = [
        Column("", width=30, is_left=True),
        *(Column(title, ".1f", 100, width=8) for title in (
            "mAP", "CF1 0.5", "CF1 t", "OF1 0.5", "OF1 t", "ECE", "ECE c",
        )),
    ]  # fmt: skip
    rows, lines = [], []
    for path, told in report.checkpoints.items():
        one = Calibration.model_validate(told)
        measured = one.measured
        rows.append(
            (
                Path(path).stem[-30:], measured.map, measured.cf1_before, measured.cf1_after,
                measured.of1_before, measured.of1_after, measured.ece_before, measured.ece_after,
            )
        )  # fmt: skip
        low, high = min(one.thresholds), max(one.thresholds)
        lines.append(
            f"{path}: {one.kind}, thresholds for {one.rule} from {low:.3f} to {high:.3f}, by "
            f"{counted(one.images, 'image')}"
        )
        if measured.untrained_f1 is not None:
            lines.append(
                f"  of names that were not trained: a cosine above {one.untrained_cosine:.3f}; of "
                f"each class of the training in turn, by the others, that has an OF1 of "
                f"{percent(measured.untrained_f1)}"
            )
    return "\n".join(
        [
            *aligned(columns, rows),
            f"percent, on {report.images}; t: at the chosen thresholds, c: calibrated, both on "
            "images that took no part in them, a fifth at a time",
            *lines,
            f"(all explained in {page('method')}, Thresholds)",
        ]
    )


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plan = _plan(config)
    files: Sequence[Path] = given_files(config.calibrate.checkpoint, config)
    try:
        files = files or [take_checkpoint(config)]
    except NoCheckpointError:
        files = [own_checkpoint(config)]
    stands = "stand" if is_complete(plan) else "are missing, pipeline.extract makes them"
    return "\n".join(
        [
            *(f"checkpoint {path} ({'stands' if path.is_file() else 'missing'})" for path in files),
            f"features {plan.folder} {stands}",
            f"{config.calibrate.kind}, thresholds for {config.calibrate.rule}, on "
            f"{_images(config, plan)}",
        ]
    )
