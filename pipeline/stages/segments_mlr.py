"""Segments of images to multi-label scores of frozen CLIP: Table 5 of the paper.

A checkpoint segments an image, CLIP scores the image and the box around each segment, and both are
averaged. Ray actors work through groups of images and leave the two scores of each image; the
report fuses them at every weight, so that one pass gives all rows.
"""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip.checkpoints.origin import read_about
from dclip.provenance import git_commit
from dclip.store.shards import digest, file_digest
from dclip.words import counted
from pipeline.features.backbone import describe_backbone, warnings_of
from pipeline.features.preflight import require_images, require_labels
from pipeline.features.splits import open_dataset, tested_on_train
from pipeline.records.choice import NoCheckpointError, given_files, take_checkpoint
from pipeline.records.report import (
    Record,
    Recorded,
    StageReport,
    folder_of,
    record,
    remarks,
    show,
    write,
)
from pipeline.settings.config import Config
from pipeline.settings.sections import SegmentsMlrConfig
from pipeline.terminal.errors import UsageError
from pipeline.terminal.table import Column, aligned
from pipeline.work.plans import SegmentsPlan, plan_system

log = logging.getLogger(__name__)


_FORMAT, _FORMAT_HALF = 1, 2  # format 1 scored images in float32 whatever was asked for


@dataclass(frozen=True, kw_only=True)
class SegmentsReport(StageReport):
    """mAP of CLIP, of segments, and of both.

    Attributes:
        dataset: Name or place of the data.
        split: What was scored.
        images: Their number.
        segments_per_image: Mean number of segments.
        map: mAP by the weight of the segments.
        checkpoint: File of the method that segments.
        features: Kind of local features that it looks at.
        candidates: Which classes compete for pixels, in words.
        area: Share of an image's pixels from which a segment counts.
        backbone: Name of the frozen CLIP.
        warnings: What a reader has to know.
        test_on_train: Whether the images are those that were trained on.
        notes: How the split was read.
        config: All settings.
        commit: Of the code.
        seconds: How long it took.
        mlflow: Where MLflow has it.
    """

    stage = "segments_mlr"
    left_out = frozenset({"mlflow"})

    dataset: str
    split: str
    images: int
    segments_per_image: float
    map: dict[str, float | None]
    checkpoint: str
    features: str
    candidates: str
    area: float
    backbone: str
    warnings: list[str]
    test_on_train: bool
    notes: list[str]
    config: dict[str, Any]
    commit: str | None
    seconds: float
    mlflow: Recorded | None = None


def plan_segments(config: Config) -> SegmentsPlan:
    """What the settings ask for.

    Raises:
        UsageError: A wrong setting, data set, split or backbone.
        StageError: The checkpoint is missing, damaged, or of another backbone.
    """
    wanted = config.segments_mlr
    split = wanted.split or config.test_split
    listing = open_dataset(config, split)
    num_images = min(len(listing), wanted.limit or len(listing))
    require_labels(listing, num_images)
    backbone = describe_backbone(config)
    backbone.require_kind(wanted.kind)
    given = given_files([wanted.checkpoint] if wanted.checkpoint else [], config)
    checkpoint = given[0] if given else take_checkpoint(config)
    about = read_about(checkpoint)
    system = plan_system(about.name, wanted.kind, checkpoint, about, backbone)
    if wanted.only_present and not system.finds_classes:
        raise UsageError(
            f"checkpoint {checkpoint}: {about.settings.title} gives no probabilities, so it does "
            "not find the classes that are to compete; give --no-only-present"
        )
    system = replace(system, only_present=wanted.only_present)
    identity = {
        "format": _FORMAT if wanted.precision in ("auto", "float32") else _FORMAT_HALF,
        "listing": listing.identity(),
        "num_images": num_images,
        "settings": wanted.model_dump(include={"area", "only_present", "precision", "group_size"}),
        "features": [backbone.space(kind) for kind in (wanted.kind, system.trained_kind) if kind],
        "weights": file_digest(checkpoint),
    }
    name = f"segments-mlr-{config.dataset_slug}-{split}-{digest(identity)[:12]}"
    folder = config.output.absolute() / "segments_mlr" / name
    return SegmentsPlan(name, folder, num_images, wanted.group_size, listing, system)


def _weights(config: Config) -> list[float]:
    """Of the segments, ascending; CLIP alone and segments alone are among them."""
    return sorted({0.0, *config.segments_mlr.weights, 1.0})


def report_name(config: Config, plan: SegmentsPlan) -> str:
    """Name of the report: that of its scores, and a hash of the weights if they are not usual."""
    weights = _weights(config)
    usual = SegmentsMlrConfig.model_fields["weights"].default
    if weights == [0.0, *usual, 1.0]:
        return plan.name
    head, _, own = plan.name.rpartition("-")
    return f"{head}-{digest({'scores': own, 'weights': weights})[:12]}"


def run(config: Config) -> SegmentsReport:
    """Score all images, fuse at every weight, write and record the report, print the table."""
    started = time.perf_counter()
    plan = plan_segments(config)  # mistakes are told before what takes seconds to load
    from pipeline.work import segments

    fused = segments.fuse_all(segments.score_all(config, plan), _weights(config))
    if len(plan.listing.class_names) == 1:
        log.warning("segments_mlr: of one class alone CLIP's share is always 1, so nothing is told")
    report = SegmentsReport(
        dataset=config.dataset,
        split=plan.listing.split,
        images=plan.num_images,
        segments_per_image=fused.segments_per_image,
        map={f"{weight:g}": value for weight, value in fused.map.items()},
        checkpoint=str(plan.system.checkpoint),
        features=plan.system.kind,
        candidates="classes found present" if plan.system.only_present else "all classes",
        area=config.segments_mlr.area,
        backbone=describe_backbone(config).name,
        warnings=warnings_of(config),
        test_on_train=plan.listing.split == config.train_split or tested_on_train(config),
        notes=list(getattr(plan.listing, "notes", ())),
        config=config.model_dump(mode="json"),
        commit=git_commit(),
        seconds=round(time.perf_counter() - started, 2),
    )
    path = write(folder_of(config, report_name(config, plan)), report)
    recorded = record(config, _record(config, report, path))
    show(table(report), f"report: {path}", *recorded.lines())
    return replace(report, mlflow=recorded)


def _record(config: Config, report: SegmentsReport, path: Path) -> Record:
    """What MLflow keeps of a report."""
    settings = config.model_dump(include={"dataset", "backbone", "pretrained"})
    own = ("images", "area", "features", "candidates", "checkpoint")
    return Record(
        label=f"segments_mlr {report.split}",
        key=path.parent.name,
        tags={"dclip.stage": "segments_mlr"},
        seconds=report.seconds,
        params={**settings, **{key: getattr(report, key) for key in own}},
        metrics={
            f"{report.split}/map/weight_{weight}": value for weight, value in report.map.items()
        },
        files=[path],
    )


def table(report: SegmentsReport) -> str:
    """The report as a table for people."""
    titles = {"0": "CLIP", "1": "segments alone", "0.5": "CLIP + segments, w = 0.5 (proposed)"}
    rows = [
        (titles.get(weight, f"CLIP + segments, w = {weight}"), value)
        for weight, value in report.map.items()
    ]
    lines = [
        *aligned([Column("", width=40, is_left=True), Column("mAP, %", ".1f", 100)], rows),
        f"{report.dataset} {report.split}, {counted(report.images, 'image')}, "
        f"{report.segments_per_image:.1f} segments an image ({report.candidates}, "
        f"from {report.area:.1%} of its pixels)",
        *remarks(report.warnings, report.notes),
    ]
    return "\n".join(lines)


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    try:
        plan = plan_segments(config)
    except NoCheckpointError as missing:
        wanted = config.segments_mlr
        listing = open_dataset(config, wanted.split or config.test_split)
        count = min(len(listing), wanted.limit or len(listing))
        return f"{count} images of {listing.name} {listing.split}\nmissing: {missing}"
    done = sum(plan.scores(group) is not None for group in range(plan.num_groups))
    if done < plan.num_groups:
        require_images(plan.listing, plan.num_images)
    return (
        f"{plan.num_images} images of {plan.listing.name} {plan.listing.split} in "
        f"{plan.num_groups} groups of {plan.group_size}; {done} done, to {plan.folder}\n"
        f"segments by checkpoint {plan.system.checkpoint}, features {plan.system.kind}"
    )
