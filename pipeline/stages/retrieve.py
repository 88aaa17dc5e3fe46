"""Images and captions to a report: how often one finds the other.

Frozen CLIP is always a row; beside it stand the checkpoints that are given, of methods that encode
images and any captions. What is ranked is the cosine, without a mask.
"""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dclip.checkpoints.origin import About, read_about
from dclip.data.caption_protocols import open_protocol
from dclip.data.captions import CaptionListing, read_captions
from dclip.data.listing import CaptionedListing, Listing
from dclip.provenance import git_commit
from dclip.store.shards import digest, file_digest
from dclip.words import counted
from pipeline.features.backbone import describe_backbone, tiny_warning, warnings_of
from pipeline.features.splits import open_dataset
from pipeline.pictures.looks import title_of
from pipeline.records.choice import described, given_files, names_of
from pipeline.records.report import (
    Record,
    Recorded,
    StageReport,
    folder_of,
    record,
    remarks,
    show,
    standing,
    write,
)
from pipeline.settings.config import TOY_BACKBONE, Config
from pipeline.terminal.errors import StageError, UsageError
from pipeline.terminal.table import Column, aligned
from pipeline.work.plans import RetrievePlan

log = logging.getLogger(__name__)

_FORMAT = 1
FROZEN = "zero_shot"
"""What reports call frozen CLIP."""


@dataclass(frozen=True, kw_only=True)
class RetrieveReport(StageReport):
    """Recall of images by captions and of captions by images.

    Attributes:
        data: What was read: a protocol, a file or a data set.
        split: Which part of it.
        images: Their number.
        captions: Their number.
        score: By what is ranked.
        form: How images became squares.
        systems: Of every method by its name: ``image_to_text`` and ``text_to_image``, recall by the
            number of the first that are looked at; ``cut``, captions that were too long to be read
            to their end; ``caption_cosine``, mean cosine between captions of different images; of a
            method with masks ``masked_caption_cosine``, the same behind their masks,
            ``mask_overlap`` and ``mask_open``.
        backbone: Name of frozen CLIP.
        resolution: Side of its images in pixels.
        checkpoints: Files by what they are called.
        trained: What each was trained to, in words.
        warnings: What a reader has to know.
        notes: How the captions were read.
        commit: Of the code.
        config: All settings.
        identity: Hash of all that its numbers depend on.
        mlflow: Where MLflow has it; None before it is there.
        figures: Files of the pictures.
        seconds: How long it took.
    """

    stage = "retrieve"

    data: str
    split: str
    images: int
    captions: int
    score: str
    form: str
    systems: dict[str, dict[str, Any]]
    backbone: str
    resolution: int
    checkpoints: dict[str, str]
    trained: dict[str, str]
    warnings: list[str]
    notes: list[str]
    commit: str | None
    config: dict[str, Any]
    identity: str
    mlflow: Recorded | None
    figures: list[str]
    seconds: float


def plan_retrieval(config: Config) -> RetrievePlan:
    """What the settings ask for; captions are read, images are not.

    Raises:
        UsageError: A wrong setting or data set, or one without captions.
        StageError: A checkpoint is missing, damaged, or of a method that compares no captions.
        ValueError: A file of captions cannot be used; the message names file and place.
    """
    wanted = config.retrieve
    data, listing, notes = _open(config)
    files = {path: read_about(path) for path in given_files(wanted.checkpoint, config)}
    for path, about in files.items():
        _require_captions(path, about)
    rows, texts, left = _choose(config, listing)
    names = names_of({path: about.name for path, about in files.items()}, (FROZEN,))
    backbone = describe_backbone(config)
    identity = digest(
        {
            "format": _FORMAT,
            "listing": listing.identity(),
            "texts": [rows, texts],
            "settings": wanted.model_dump(include={"form", "score", "precision"}),
            "backbone": [
                *(backbone.fingerprint, backbone.resolution, backbone.preparation),
                *(backbone.mean, backbone.std),
            ],
            "checkpoints": {names[path]: file_digest(path) for path in files},
        }
    )
    return RetrievePlan(
        data, listing, rows, texts, {names[p]: p for p in files}, (*notes, *left), identity
    )


def _open(config: Config) -> tuple[str, Listing, tuple[str, ...]]:
    """Images with captions, what they are called, and how they were read."""
    wanted = config.retrieve
    if wanted.protocol and wanted.captions:
        raise UsageError("--protocol and --captions each say what is read; give one of them")
    if wanted.image_folder is not None and not wanted.captions:
        raise UsageError("--image-folder is that of the images of --captions, which is not given")
    if wanted.protocol is None and wanted.captions is None:
        split = wanted.split or config.test_split
        listing = open_dataset(config, split)
        if not isinstance(listing, CaptionedListing):
            raise UsageError(
                f"{config.dataset} {split} has no captions; take --dataset shapes, a --protocol, or"
                " --captions FILE"
            )
        return config.dataset, listing, tuple(getattr(listing, "notes", ()))
    is_tiny = config.backbone == TOY_BACKBONE and config.pretrained is None
    if is_tiny and "backbone" not in config.model_fields_set:
        raise UsageError(
            f"{wanted.protocol or wanted.captions} has photographs, of which the CLIP of shapes "
            "knows nothing; name a --backbone, such as ViT-B-16"
        )
    found: CaptionListing
    if wanted.protocol:
        if config.root is None or wanted.split:
            raise UsageError(
                f"--protocol {wanted.protocol} needs --root, the folder of its data set, and says "
                "itself which --split"
            )
        found = open_protocol(wanted.protocol, config.root)
        return wanted.protocol, found, found.notes
    assert wanted.captions is not None
    found = read_captions(wanted.captions, wanted.split or "all", images=wanted.image_folder)
    return wanted.captions, found, found.notes


def _require_captions(path: Path, about: About) -> None:
    settings = about.settings
    if not (settings.sees_images() and "captions" in settings.training_feeds()):
        raise StageError(
            f"checkpoint {path} is of {settings.title}, which compares images with its classes, not"
            " with captions; give one of smartclip"
        )


def _choose(
    config: Config, listing: Listing
) -> tuple[tuple[int, ...], tuple[tuple[str, ...], ...], list[str]]:
    """Images that take part, their captions, and what is to be told of others."""
    wanted = config.retrieve
    assert isinstance(listing, CaptionedListing)
    count = min(len(listing), wanted.limit or len(listing))
    rows: list[int] = []
    texts: list[tuple[str, ...]] = []
    for row, every in enumerate(listing.captions(np.arange(count))):
        own = every if wanted.only is None else every[wanted.only - 1 : wanted.only]
        kept = tuple(text for text in own[: wanted.most] if text.strip())
        if kept:
            rows.append(row)
            texts.append(kept)
    left = count - len(rows)
    if not rows:
        raise UsageError(f"none of {counted(count, 'image')} has the captions that are asked for")
    told = f"left out: {counted(left, 'image')} without the captions that are asked for"
    return tuple(rows), tuple(texts), [told] if left else []


def run(config: Config) -> RetrieveReport:
    """Encode, rank, draw, write and record the report, and print the table.

    What stands is not made again.
    """
    plan = plan_retrieval(config)
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(plan.data).name).strip(
        "-."
    )
    folder = folder_of(config, f"retrieve-{slug}-{plan.identity[:12]}")
    kept = None if config.retrieve.anew else standing(folder, RetrieveReport, plan.identity)
    if kept is None or not all(Path(figure).is_file() for figure in kept.figures):
        log.info(
            "retrieve: %s and %s of %s",
            counted(len(plan.rows), "image"), counted(plan.num_captions, "caption"), plan.data,
        )  # fmt: skip
        report = _make(config, plan, folder)
        write(folder, report)
    else:
        log.info("retrieve: nothing to do, %s stands (--retrieve.anew makes it again)",
                 folder / "report.json")  # fmt: skip
        report = kept
    recorded = report.mlflow
    if recorded is None or not recorded.is_of(config):
        recorded = record(config, _record(config, folder, report))
        report = replace(report, mlflow=recorded)
        write(folder, report)
    show(table(report), f"report: {folder / 'report.json'}", *report.figures, *recorded.lines())
    return report


def _make(config: Config, plan: RetrievePlan, folder: Path) -> RetrieveReport:
    """The report, and the pictures of the masks."""
    from pipeline.work import retrieval

    started = time.perf_counter()
    found = retrieval.compare(config, plan, folder)
    backbone = describe_backbone(config)
    reads = wanted_warnings(config)
    return RetrieveReport(
        data=plan.data,
        split=plan.listing.split,
        images=len(plan.rows),
        captions=plan.num_captions,
        score=config.retrieve.score,
        form=config.retrieve.form,
        systems=found.systems,
        backbone=backbone.name,
        resolution=backbone.resolution,
        checkpoints={name: str(path) for name, path in plan.files.items()},
        trained={name: described(read_about(path)) for name, path in plan.files.items()},
        warnings=reads,
        notes=list(plan.notes),
        commit=git_commit(),
        config=config.model_dump(mode="json"),
        identity=plan.identity,
        mlflow=None,
        figures=list(map(str, found.figures)),
        seconds=round(time.perf_counter() - started, 2),
    )


def wanted_warnings(config: Config) -> list[str]:
    """What has to be known of every number of these settings."""
    wanted = config.retrieve
    if wanted.protocol is None and wanted.captions is None:
        return warnings_of(config)
    is_tiny = config.backbone == TOY_BACKBONE and config.pretrained is None
    return [tiny_warning(str(wanted.protocol or wanted.captions))] if is_tiny else []


def table(report: RetrieveReport) -> str:
    """The report as a table for people, in percent."""
    ranks = list(next(iter(report.systems.values()))["image_to_text"])
    ways = {"image_to_text": "I>T", "text_to_image": "T>I"}
    columns = [
        Column("", width=28, is_left=True),
        *(Column(f"{way} R@{k}", ".1f", 100, 8) for way in ways.values() for k in ranks),
        Column("cosine", ".3f", width=7),
        Column("masked", ".3f", width=7),
    ]
    rows = [
        (
            title_of(name),
            *(own[way][k] for way in ways for k in ranks),
            own["caption_cosine"],
            own.get("masked_caption_cosine"),
        )
        for name, own in report.systems.items()
    ]
    cut = {name: own["cut"] for name, own in report.systems.items() if own["cut"]}
    lines = [
        *aligned(columns, rows),
        f"{report.data} {report.split}: {counted(report.images, 'image')}, "
        f"{counted(report.captions, 'caption')}; recall in percent",
        "I>T: a caption of the image is among the first; T>I: the caption's image is; by "
        f"{report.score}",
        f"images of {report.resolution} px ({report.form}), backbone {report.backbone}",
        "cosine: mean between captions of different images; masked: the same behind their masks",
        *(f"{name}: {path} ({report.trained[name]})" for name, path in report.checkpoints.items()),
        *(
            f"note: {counted(number, 'caption')} longer than {name} reads, cut behind that"
            for name, number in cut.items()
        ),
        *remarks(report.warnings, report.notes),
    ]
    return "\n".join(lines)


def _record(config: Config, folder: Path, report: RetrieveReport) -> Record:
    """What MLflow keeps of a report."""
    ways = ("image_to_text", "text_to_image")
    metrics: dict[str, float | None] = {}
    for name, own in report.systems.items():
        for way in ways:
            metrics |= {f"test/{way}_r{k}/{name}": value for k, value in own[way].items()}
        for key in ("caption_cosine", "masked_caption_cosine", "mask_overlap", "mask_open"):
            metrics[f"test/{key}/{name}"] = own.get(key)
    settings = config.model_dump(include={"dataset", "backbone", "pretrained"})
    own_params = ("data", "split", "images", "captions", "score", "form", "resolution")
    return Record(
        label="retrieve " + " ".join(report.systems),
        key=folder.name,
        tags={"dclip.stage": "retrieve"},
        seconds=report.seconds,
        params={**settings, **{key: getattr(report, key) for key in own_params}},
        metrics=metrics,
        files=[folder / "report.json"],
        figures=[Path(figure) for figure in report.figures],
        texts={"config.json": config.model_dump_json(indent=1)},
    )


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plan = plan_retrieval(config)
    backbone = describe_backbone(config)
    lines = [
        f"{counted(len(plan.rows), 'image')} and {counted(plan.num_captions, 'caption')} of "
        f"{plan.data} {plan.listing.split}",
        f"frozen CLIP {backbone.name}, images of {backbone.resolution} px, {config.retrieve.form}",
        *(f"{name}: checkpoint {path}" for name, path in plan.files.items()),
        *remarks(wanted_warnings(config), plan.notes),
    ]
    return "\n".join(lines)
