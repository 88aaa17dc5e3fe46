"""Checkpoints and images to a report: classes of pixels against true masks, without mask training.

Frozen CLIP in several forms and every checkpoint segment the same images by the same rule. Ray
actors work through groups of images and leave a small file of counts for each; the report is their
sum. So a run that was stopped goes on with the groups that are missing.
"""

import csv
import io
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip.checkpoints.origin import read_about
from dclip.data.coco_masks import PaintedListing, only_keys
from dclip.data.segmentation import BACKGROUND, SegmentationListing, label_names
from dclip.methods.registry import find_settings
from dclip.methods.settings import of_preset
from dclip.provenance import git_commit
from dclip.store.paths import write_text
from dclip.store.shards import digest, file_digest
from dclip.words import counted
from pipeline.features.backbone import BackboneInfo, describe_backbone, warnings_of
from pipeline.features.listings import is_own, open_segmentation, options_of
from pipeline.features.preflight import TEMPLATES, require_fit_names, require_images
from pipeline.features.splits import open_dataset, tested_on_train
from pipeline.pictures.looks import title_of
from pipeline.records.choice import NoCheckpointError, given_files, names_of, take_checkpoints
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
from pipeline.settings.sections import SegmentConfig
from pipeline.settings.training import compared
from pipeline.terminal.errors import UsageError
from pipeline.terminal.pages import page
from pipeline.terminal.table import Column, aligned
from pipeline.work.plans import SegmentPlan, SystemPlan, plan_system

log = logging.getLogger(__name__)


_FORMAT = 1
_CHECKPOINTS, _EARLIER = "checkpoints", "projectors"  # what was called by the first method

# Kind of local features; of several the first one the backbone has. Plain CLIP is `value` of a ViT
# and `qk` of a ResNet, MaskCLIP the other way round.
_FROZEN: Mapping[str, tuple[str, ...]] = {
    "clip": ("qk", "value"),
    "maskclip": ("maskclip", "value"),
    "clip_vv": ("vv",),
    "clip_surgery": ("vv",),
    "sclip": ("sclip",),
    "clearclip": ("clearclip",),
    "naclip": ("naclip",),
}
_ON_IMAGES = "tagclip"  # needs no checkpoint, and no local features


@dataclass(frozen=True, kw_only=True)
class SegmentReport(StageReport):
    """Measures of systems that segment.

    Attributes:
        dataset: Name or place of the data.
        split: What was segmented.
        images: Their number.
        class_names: Of all classes.
        classes_scored: How many of them are scored by their texts.
        backbone: Name of the frozen CLIP.
        protocol: In words, what decides the numbers.
        systems: Measures of every system, by name, and what it is.
        warnings: What a reader has to know.
        test_on_train: Whether the images are those that were trained on.
        notes: How the split was read.
        config: All settings.
        commit: Of the code.
        seconds: How long it took.
        figures: Files of the pictures.
        mlflow: Where MLflow has it.
    """

    stage = "segment"
    left_out = frozenset({"mlflow"})

    dataset: str
    split: str
    images: int
    class_names: list[str]
    classes_scored: int
    backbone: str
    protocol: dict[str, Any]
    systems: dict[str, dict[str, Any]]
    warnings: list[str]
    test_on_train: bool
    notes: list[str]
    config: dict[str, Any]
    commit: str | None
    seconds: float
    figures: list[str]
    mlflow: Recorded | None = None


def plan_segment(config: Config) -> SegmentPlan:
    """What the settings ask for.

    Raises:
        UsageError: A wrong setting, data set, split or backbone.
        StageError: A checkpoint is missing, damaged, or of another backbone.
        ValueError: What is on disk cannot be used.
    """
    wanted = config.segment
    split = wanted.split or config.test_split
    listing = _open_listing(config)
    backbone = describe_backbone(config)
    scored = scored_classes(config, listing)
    view = view_settings(config, backbone)
    systems = plan_systems(config, backbone)
    num_images = min(len(listing), wanted.limit or len(listing))
    identity = {
        "format": _FORMAT,
        "listing": listing.identity(),
        "num_images": num_images,
        "group_size": wanted.group_size,
        "phrasings": [list(listing.phrasings[position]) for position in scored],
        "templates": list(wanted.templates),
        "rule": _rule(config),
        "view": view,
        "systems": [
            {
                "name": plan.name,
                "features": backbone.space(plan.kind),
                "only_present": plan.only_present and plan.trained_kind,
                "weights": plan.checkpoint and file_digest(plan.checkpoint),
            }
            | ({} if plan.method is None else {"settings": plan.method.model_dump(mode="json")})
            for plan in systems
        ],
    }
    name = f"segment-{config.dataset_slug}-{split}-{digest(identity)[:12]}"
    folder = config.output.absolute() / "segment" / name
    return SegmentPlan(
        name=name,
        folder=folder,
        listing=listing,
        scored=scored,
        background=0 if listing.class_names[0] == BACKGROUND else None,
        view=view,
        systems=systems,
        num_images=num_images,
        group_size=wanted.group_size,
    )


def _rule(config: Config) -> dict[str, Any]:
    """Settings that turn scores into classes; those that do nothing here as if left out."""
    keys = {"normalisation", "background", "threshold", "logit_scale", "precision"}
    rule = config.segment.model_dump(include=keys)
    if config.segment.background != "threshold":
        fields = SegmentConfig.model_fields
        rule |= {key: fields[key].default for key in ("threshold", "logit_scale")}
    return rule


def report_name(config: Config, plan: SegmentPlan) -> str:
    """Name of the report: that of its counts, and a hash of what it makes of them if not usual."""
    neighbours = config.segment.neighbours
    if neighbours == SegmentConfig.model_fields["neighbours"].default:
        return plan.name
    head, _, own = plan.name.rpartition("-")
    return f"{head}-{digest({'counts': own, 'neighbours': neighbours})[:12]}"


def _open_listing(config: Config) -> SegmentationListing:
    split = config.segment.split or config.test_split
    if split == config.test_split:
        tested_on_train(config)
    options = options_of(config.dataset, config.images, config.options)
    listing = open_segmentation(config.dataset, config.root, split, options)
    require_fit_names(
        [name for names in listing.phrasings for name in names],
        of=f"{config.dataset} {split}",
        backbone=config.backbone,
        templates=(*TEMPLATES, *config.segment.templates),
    )
    if isinstance(listing, PaintedListing) and is_own(config.dataset):
        # the images that are trained on or scored: a part of them, or those with an object
        labelled = open_dataset(config, split)
        listing = only_keys(listing, [labelled.key(row) for row in range(len(labelled))])
    return listing


def plan_systems(config: Config, backbone: BackboneInfo) -> list[SystemPlan]:
    """The rows of the comparison, in the order of the settings.

    A checkpoint of a method that gives no probabilities has no row of the classes that it finds.

    Raises:
        UsageError: The backbone lacks the kind that checkpoints are to look at, nothing is left to
            compare, or two systems have one name.
        NoCheckpointError: None is given, and there is none.
        StageError: A checkpoint is missing, damaged, or of another backbone.
    """
    plans: list[SystemPlan] = []
    why: list[str] = []  # systems are left out
    asked = [name.replace(_EARLIER, _CHECKPOINTS) for name in config.segment.systems]
    for name in dict.fromkeys(name.removesuffix("_present") for name in asked):
        if name == _CHECKPOINTS:
            for plan in _plan_checkpoints(config, backbone):
                if name in asked:
                    plans.append(plan)
                if f"{name}_present" not in asked:
                    continue
                if plan.finds_classes:
                    plans.append(replace(plan, name=f"{plan.name}_present", only_present=True))
                else:
                    why.append(
                        f"{plan.name} gives no probabilities, so it does not find classes and is "
                        f"left out of {name}_present"
                    )
            continue
        if name == _ON_IMAGES:
            if "attention" not in backbone.offers:
                why.append(
                    f"{backbone.name} is no ViT that gives its attention and is left out of {name}"
                )
                continue
            own = of_preset(find_settings(name), config.segment.tagclip)[1]
            plans += [
                SystemPlan(row, "value", method=own, only_present=row != name)
                for row in (name, f"{name}_present")
                if row in asked
            ]
            continue
        kind = next((kind for kind in _FROZEN[name] if kind in backbone.paths), None)
        if kind is None:
            why.append(f"{backbone.name} has no {_FROZEN[name][0]} and is left out of {name}")
        elif name == "maskclip" and kind == "value" and "qk" not in backbone.paths:
            why.append(f"{backbone.name} has no features of MaskCLIP beside its own")
        else:
            plans.append(SystemPlan(name, kind))
    for text in why:
        log.info("%s", text)
    names = [plan.name for plan in plans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two systems are called {twice[0]!r}; leave out one of the checkpoints")
    if not plans:
        raise UsageError("; ".join([f"{backbone.name} has none of the systems {asked}", *why]))
    return plans


def _plan_checkpoints(config: Config, backbone: BackboneInfo) -> list[SystemPlan]:
    """Plans of the checkpoints; several of one method are called by their files."""
    kind = config.segment.kind
    backbone.require_kind(kind)
    try:
        files = given_files(config.segment.checkpoint, config) or take_checkpoints(
            config, compared(config)
        )
    except NoCheckpointError as error:
        raise NoCheckpointError(f"{error}, or only frozen --segment.systems") from None
    abouts = {path: read_about(path) for path in files}
    names = names_of({path: about.name for path, about in abouts.items()}, (*_FROZEN, _ON_IMAGES))
    return [plan_system(names[path], kind, path, about, backbone) for path, about in abouts.items()]


def scored_classes(config: Config, listing: SegmentationListing) -> range:
    """Which of a listing's classes are scored by their texts, by the rule for background.

    Raises:
        UsageError: Background is asked for and is no class of the data set.
    """
    total, named = len(listing.class_names), len(label_names(listing.class_names))
    rule = config.segment.background
    if rule != "none" and named == total:
        raise UsageError(
            f"--segment.background {rule}: background is no class of {listing.name} with these "
            "options; use none"
        )
    return range(0 if rule == "class" else total - named, total)


def view_settings(config: Config, backbone: BackboneInfo) -> dict[str, int]:
    """``resolution`` of one square, or ``window``, ``stride`` and ``short_side``.

    Raises:
        UsageError: The numbers do not fit one another or the backbone.
    """
    wanted = config.segment
    if wanted.window is None:
        if wanted.stride is not None or wanted.short_side is not None:
            raise UsageError("--segment.stride and --segment.short-side need --segment.window")
        return {"resolution": wanted.image_resolution or backbone.resolution}
    if wanted.image_resolution is not None:
        raise UsageError(
            "--segment.image-resolution is of one square, --segment.window of many; give one"
        )
    short_side = wanted.short_side or backbone.resolution
    stride = wanted.stride or max(1, wanted.window // 2)
    if not stride <= wanted.window <= short_side:
        raise UsageError(
            "sliding windows need stride <= window <= short side, got stride "
            f"{stride}, window {wanted.window}, short side {short_side}"
        )
    return {"window": wanted.window, "stride": stride, "short_side": short_side}


_SHOWN = {
    "miou": "miou",
    "miou_paper": "miou_paper",
    "miou_paper_positive": "..._positive",
    "pixel_accuracy": "pixel_acc",
    "leakage_harmonic_mean": "leakage_hm",
}


_LEGEND = (
    "percent. miou: by class over the whole data set, the field's. miou_paper, ..._positive: for",
    "each image over classes predicted there, or of IoU > 0, background not counted, then over",
    "images: the DCLIP paper's scripts. miou and miou_paper cannot be compared.",
)


def table(report: SegmentReport) -> str:
    """The report as a table for people, in percent, and what the columns mean."""
    columns = [
        Column("", width=28, is_left=True),
        *(Column(title, ".1f", 100, width=12) for title in _SHOWN.values()),
    ]
    rows = [(title_of(name), *(row[key] for key in _SHOWN)) for name, row in report.systems.items()]
    how = report.protocol
    lines = [
        *aligned(columns, rows),
        f"{report.dataset} {report.split}, {counted(report.images, 'image')}, "
        f"{counted(report.classes_scored, 'class', 'classes')}; {how['view']}; scores "
        f"{how['scores']};",
        f"background: {how['background']}",
        *_LEGEND,
        f"(all explained in {page('method')}, Metrics)",
        *remarks(report.warnings, report.notes),
    ]
    return "\n".join(lines)


def protocol(config: Config, plan: SegmentPlan) -> dict[str, Any]:
    """In words, what decides the numbers of a report."""
    wanted, view = config.segment, plan.view
    background = {
        "none": "no pixel is given to it, its true pixels are not counted"
        if plan.background is not None
        else "no class of this data set",
        "threshold": f"where the largest softmax of {wanted.logit_scale:g} x scores is below "
        f"{wanted.threshold:g}",
        "class": "a class like the others, by its phrasings",
    }
    return {
        "view": f"one square of {view['resolution']} px"
        if "resolution" in view
        else f"windows of {view['window']} px every {view['stride']} px, short side "
        f"{view['short_side']} px",
        "scores": "min-max by class and image" if wanted.normalisation == "minmax" else "cosines",
        "background": background[wanted.background],
        "texts": "positive prompts, unit features averaged over templates; of projectors the "
        "projected ones, BatchNorm in evaluation mode, normalised after projection",
        "templates": list(wanted.templates),
        "phrasings": "the best of a class's at each location",
    }


def class_table(report: SegmentReport) -> str:
    """IoU of every class by every system, as CSV; empty where a class is nowhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *(f"iou/{name}" for name in report.systems)])
    rows = [row["class_iou"] for row in report.systems.values()]
    for name, *values in zip(report.class_names, *rows, strict=True):
        writer.writerow([name, *("" if v is None else f"{v:.6f}" for v in values)])
    return text.getvalue()


def run(config: Config) -> SegmentReport:
    """Segment, sum up, write report and IoU by class, record them in MLflow, print the table."""
    started = time.perf_counter()
    plan = plan_segment(config)  # mistakes are told before what takes seconds to load
    from pipeline.work import segmentation

    groups = segmentation.count_all(config, plan)
    backbone = describe_backbone(config)
    measures = segmentation.measure(config, plan, groups)
    seconds = round(time.perf_counter() - started, 2)
    folder = folder_of(config, report_name(config, plan))
    folder.mkdir(parents=True, exist_ok=True)
    report = SegmentReport(
        dataset=config.dataset,
        split=plan.listing.split,
        images=plan.num_images,
        class_names=list(plan.listing.class_names),
        classes_scored=len(plan.scored),
        backbone=backbone.name,
        protocol=protocol(config, plan),
        systems={
            system.name: {**measures[system.name], **_about(system, backbone)}
            for system in plan.systems
        },
        warnings=warnings_of(config),
        test_on_train=plan.listing.split == config.train_split or tested_on_train(config),
        notes=list(getattr(plan.listing, "notes", ())),
        config=config.model_dump(mode="json"),
        commit=git_commit(),
        seconds=seconds,
        figures=list(map(str, segmentation.draw(config, plan, groups, measures, folder))),
    )
    path = write(folder, report)
    classes = folder / "classes.csv"
    write_text(classes, class_table(report))
    recorded = record(config, _record(config, report, [path, classes]))
    show(table(report), f"report, classes and pictures: {folder}", *recorded.lines())
    return replace(report, mlflow=recorded)


def _about(system: SystemPlan, backbone: BackboneInfo) -> dict[str, Any]:
    """What a report says of a system beside its measures."""
    if system.method is not None:
        return {
            "features": "the image at its own size, with the attention of all blocks",
            "checkpoint": None,
            "candidates": "classes found: of a score above a share of the way from the lowest to "
            "the highest of the image, or the largest"
            if system.only_present
            else "all classes",
            "trained_on": None,
            "trained_classes": [],
            "settings": system.method.model_dump(mode="json"),
        }
    return {
        "features": f"{system.kind}: {backbone.paths[system.kind]}",
        "checkpoint": system.checkpoint and str(system.checkpoint),
        "candidates": "classes found present: probability of the prompt pair from 0.5, or the "
        "largest, over local features trained on"
        if system.only_present
        else "all classes",
        "trained_on": system.trained_kind,
        "trained_classes": list(system.trained_classes),
    }


def _record(config: Config, report: SegmentReport, files: list[Path]) -> Record:
    """What MLflow keeps of a report."""
    settings = config.model_dump(include={"dataset", "backbone", "pretrained"})
    return Record(
        label=f"segment {report.split}",
        key=files[0].parent.name,
        tags={"dclip.stage": "segment"},
        seconds=report.seconds,
        params={**settings, "split": report.split, "images": report.images, **report.protocol},
        metrics=metrics(report),
        files=files,
        figures=[Path(path) for path in report.figures],
    )


def metrics(report: SegmentReport) -> dict[str, float]:
    """What MLflow shows of a report: val/miou/dclip, val/miou_paper/clip_vv, ..."""
    return {
        f"{report.split}/{name}/{system}": value
        for system, row in report.systems.items()
        for name, value in row.items()
        if isinstance(value, float)
    }


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    try:
        plan = plan_segment(config)
    except NoCheckpointError as missing:
        listing = _open_listing(config)
        count = min(len(listing), config.segment.limit or len(listing))
        return (
            f"{count} images of {listing.name} {listing.split}, "
            f"{len(scored_classes(config, listing))} classes\nmissing: {missing}"
        )
    done = sum(plan.counts(group) is not None for group in range(plan.num_groups))
    if done < plan.num_groups:
        require_images(plan.listing, plan.num_images)
    how = protocol(config, plan)
    lines = [
        f"{plan.num_images} images of {plan.listing.name} {plan.listing.split}, "
        f"{len(plan.scored)} classes, in {plan.num_groups} groups of {plan.group_size}; {done} "
        f"groups done, {plan.num_groups - done} to do, to {plan.folder}",
        f"{how['view']}; scores {how['scores']}; background: {how['background']}",
    ]
    for system in plan.systems:
        source = f", checkpoint {system.checkpoint}" if system.checkpoint else ""
        present = ", classes found present" if system.only_present else ""
        seen = "the image at its own size" if system.method else f"features {system.kind}"
        lines.append(f"{system.name}: {seen}{present}{source}")
    return "\n".join(lines)
