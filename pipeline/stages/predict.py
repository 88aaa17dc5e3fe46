"""Any images and class names to scores, maps and masks."""

import csv
import hashlib
import io
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from dclip.checkpoints.origin import read_about
from dclip.data.images import IMAGE_SUFFIXES, is_image_name, tell_passed_over
from dclip.methods.registry import find_method
from dclip.provenance import git_commit
from dclip.store.paths import AnyPath, has_folders, write_text
from dclip.store.shards import digest, file_digest
from dclip.texts import check_class_names, fold_name
from dclip.words import counted, short
from pipeline.features.backbone import describe_backbone, warnings_of
from pipeline.features.listings import path_of
from pipeline.features.preflight import one_text_note, require_fit_names
from pipeline.records import labels_table
from pipeline.records.choice import NoCheckpointError, take_one
from pipeline.records.origin import kind_trained_on
from pipeline.records.report import StageReport, remarks, show, write
from pipeline.settings.config import TOY_DATASETS, Config, usual_backbone
from pipeline.terminal.errors import UsageError
from pipeline.terminal.pages import page
from pipeline.terminal.table import Column, aligned
from pipeline.work.plans import BY_CLIP, BY_METHOD, PredictPlan, stamp_of

log = logging.getLogger(__name__)


_NO_CLASSES = (
    'name the classes to look for: --classes "dog, horse, person"; only a training has its own '
    "names, and none is taken"
)
_MOST_ROWS = 12  # of an image, that the terminal shows
_MOST_CLASSES = (1 << 16) - 1  # beside background, that a PNG of 16 bits holds
_LONGEST_NAME = 100  # bytes of the name of a picture, without what is added to it
_VERSION = 3  # raise it when the same images and settings give another result


@dataclass(frozen=True, kw_only=True)
class PredictReport(StageReport):
    """What is said of each image.

    Attributes:
        taken: What answers, in a line.
        warnings: What a reader has to know.
        images: A line of ``predictions.jsonl`` each: scores of every class, and pictures.
        class_names: The classes.
        checkpoint: File of the method; None for frozen CLIP.
        trained_classes: Classes that it was trained on.
        backbone: Name of the frozen CLIP.
        features: Kind of local features.
        calibration: Of its probabilities and thresholds; None where it has none.
        background: The rule for background, in words.
        passed_over: Of each folder, what was not taken for an image.
        failures: What went wrong, an image each.
        config: All settings.
        commit: Of the code.
        seconds: How long it took.
        error: All that went wrong; None where nothing did.
    """

    stage = "predict"
    left_out = frozenset({"error"})

    taken: str
    warnings: list[str]
    images: list[dict[str, Any]]
    class_names: list[str]
    checkpoint: str | None
    trained_classes: list[str]
    backbone: str
    features: str
    calibration: dict[str, Any] | None
    background: str
    passed_over: dict[str, str]
    failures: list[str]
    config: dict[str, Any]
    commit: str | None
    seconds: float
    error: str | None = None


def plan_predict(config: Config) -> PredictPlan:
    """What the settings ask for.

    Raises:
        UsageError: No image or class, names that are one text to CLIP or unfit, a folder without
            images, or a checkpoint where none is wanted.
        StageError: The checkpoint is missing, damaged, or of another backbone.
    """
    wanted = config.predict
    classes = _class_names(wanted.classes) if wanted.classes else ()
    if not classes and wanted.zero_shot:
        raise UsageError(_NO_CLASSES)
    sources, passed_over = _sources(wanted.paths)
    config, checkpoint, why = _take(config)
    if not classes and checkpoint is not None:
        classes = tuple(read_about(checkpoint).class_names)
    if not classes:
        raise UsageError(_NO_CLASSES)
    require_fit_names(classes, of="--classes", backbone=config.backbone)
    backbone = describe_backbone(config)
    about, method, kind = None, None, "value"
    taken = f"frozen CLIP {backbone.name} alone ({why})"
    if checkpoint is not None:
        about = read_about(checkpoint)
        method = find_method(about.method)
        kind = kind_trained_on(checkpoint, about, backbone)
        taken = (
            f"checkpoint {checkpoint} ({why}): {about.name}, trained on "
            f"{counted(len(about.class_names), 'class', 'classes')} and {about.made_on}"
        )
    known = {fold_name(name): name for name in about.class_names} if about else {}
    if wanted.labels is not None:
        tells = backbone.logit_bias is not None if method is None else method.gives_probabilities
        if not tells:
            raise UsageError(
                f"--labels: {taken} ranks images, and does not say which classes are there; give "
                "--checkpoint of a method that tells probabilities"
            )
        labels_table.require_place(wanted.labels, sources, flag="--labels")
    identity = {
        "version": _VERSION,
        "sources": [str(source.absolute()) for source in sources],
        "classes": list(classes),
        "weights": checkpoint and file_digest(checkpoint),
        "features": backbone.space(kind),
        "threshold": wanted.threshold,
        "untrained_probability": wanted.untrained_probability,
    }
    return PredictPlan(
        config=config,
        sources=sources,
        passed_over=passed_over,
        classes=classes,
        trained_as=tuple(known.get(fold_name(name)) for name in classes),
        checkpoint=checkpoint,
        about=about,
        kind=kind,
        gives_probabilities=method is not None
        and (method.gives_probabilities or (about is not None and about.calibration is not None)),
        clip_tells=backbone.logit_bias is not None,
        locates=method is not None and method.locates(),
        taken=taken,
        folder=config.output.absolute() / "predictions" / digest(identity)[:12],
    )


def _take(config: Config) -> tuple[Config, Path | None, str]:
    """The settings with the backbone that is meant, the checkpoint if there is one, and why so.

    Raises:
        UsageError: Both a checkpoint and none are asked for.
        StageError: The checkpoint that is named is none.
    """
    wanted = config.predict
    if wanted.zero_shot and wanted.checkpoint is not None:
        raise UsageError("--zero-shot takes no --checkpoint; give one of them")
    if wanted.zero_shot:
        return _with_real_clip(config), None, "--zero-shot"
    try:
        return take_one(config, wanted.checkpoint)
    except NoCheckpointError:
        if wanted.checkpoint is not None:
            raise
        why = "these settings have no checkpoint; --checkpoint FILE gives one"
        return _with_real_clip(config), None, why


def _with_real_clip(config: Config) -> Config:
    """The settings for photographs: no tiny CLIP, unless somebody named it."""
    if "backbone" in config.model_fields_set or config.dataset not in TOY_DATASETS:
        return config
    return config.model_copy(update={"backbone": usual_backbone({})})


def _class_names(given: list[str]) -> tuple[str, ...]:
    """Class names without spaces around them, no two of them one text to CLIP."""
    classes = tuple(name.strip() for name in given)
    try:
        check_class_names(classes)
    except ValueError as error:
        raise UsageError(f"--classes: {error}") from None
    if note := one_text_note(classes):
        raise UsageError(f"--classes: {note}; leave one of each")
    if len(classes) > _MOST_CLASSES:
        raise UsageError(f"a mask holds {_MOST_CLASSES} classes, not {len(classes)}")
    return classes


def _sources(given: list[str]) -> tuple[list[AnyPath], dict[str, str]]:
    """The images that are named and those of folders that are, sorted; what folders have beside.

    A file that is named is tried whatever it is called.
    """
    if not given:
        raise UsageError("no image; name some: python -m pipeline.predict photo.jpg folder ...")
    sources: list[AnyPath] = []
    passed_over: dict[str, str] = {}
    for path in map(path_of, given):
        if not (has_folders(path) and path.is_dir()):
            sources.append(path)
            continue
        if isinstance(path, Path):
            entries = list(path.iterdir())
            names = [entry.name for entry in entries if not entry.is_dir()]
            folders = len(entries) - len(names)
        else:
            names, folders = list(path.sizes()), 0
        images = sorted(name for name in names if is_image_name(name))
        beside = tell_passed_over(name for name in names if not is_image_name(name))
        if folders:
            inside = f"{counted(folders, 'folder')}, which are not looked into"
            beside = ", ".join(filter(None, [beside, inside]))
        if not images:
            raise UsageError(
                f"folder {path} has no image ({', '.join(IMAGE_SUFFIXES)}) directly in it"
                + (f"; it has {beside}" if beside else "")
            )
        if beside:
            passed_over[str(path)] = beside
        sources += [path / name for name in images]
    return sources, passed_over


def _names(sources: Sequence[AnyPath]) -> list[str]:
    """What the files of each image are called: its own name, with a number where that is taken.

    Long names end in a hash, so that those of the pictures fit every file system. Names that differ
    in case only count as one, as on macOS and Windows.
    """
    names: list[str] = []
    taken: set[str] = set()
    for source in sources:
        path = source.name if isinstance(source, Path) else unquote(urlsplit(str(source)).path)
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in PurePosixPath(path).stem)
        stem = stem or "image"
        if len(stem.encode()) > _LONGEST_NAME:
            start = stem.encode()[: _LONGEST_NAME - 13].decode(errors="ignore")
            whole = hashlib.sha256(path.encode(errors="surrogateescape"))
            stem = f"{start}-{whole.hexdigest()[:12]}"
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


_LINES, _TABLE = "predictions.jsonl", "predictions.csv"


def _standing(plan: PredictPlan, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Images, by the name of their files, that an earlier run of this plan finished."""
    try:
        lines = (plan.folder / _LINES).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    stamps = {name: stamp_of(source) for name, source in zip(names, plan.sources, strict=True)}
    columns, standing = set(_columns(plan)), {}
    for line in lines:
        try:
            image = json.loads(line)
            name, pictures = image["name"], image["pictures"]
            is_told = all(columns <= row.keys() for row in image["scores"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the line at which a run was stopped
        is_same = stamps.get(name) is not None and image.get("stamp") == stamps[name]
        if (
            is_told
            and is_same
            and pictures
            and all(Path(path).is_file() for path in pictures.values())
        ):
            standing[name] = image
    return standing


def run(config: Config) -> PredictReport:
    """Predict every image, draw it, and write and print the table.

    Each image is written as soon as it is done, and one that stands already is left as it is. An
    image that cannot be read or drawn is named in the report's ``error``.
    """
    started = time.perf_counter()
    plan = plan_predict(config)
    log.info("predict: taken: %s", plan.taken)
    for folder, beside in plan.passed_over.items():
        log.info("predict: %s: passed over %s", folder, beside)
    cautions = _cautions(plan)
    for caution in cautions:
        log.warning("predict: warning: %s", caution)
    plan.folder.mkdir(parents=True, exist_ok=True)
    names = _names(plan.sources)
    done = _standing(plan, names)
    _write_all(plan, done.values())
    if done:
        log.info("predict: %d of %d images stand", len(done), len(names))
    failures = _make(plan, names, done) if len(done) < len(names) else []
    images = [done[name] for name in names if name in done]
    error = f"{len(failures)} of {len(names)} images left out: " + "; ".join(failures)
    report = PredictReport(
        taken=plan.taken,
        warnings=cautions,
        images=images,
        class_names=list(plan.classes),
        checkpoint=None if plan.checkpoint is None else str(plan.checkpoint),
        trained_classes=plan.about.class_names if plan.about else [],
        backbone=describe_backbone(plan.config).name,
        features=plan.kind,
        calibration=plan.about.calibration.model_dump(mode="json")
        if plan.about and plan.about.calibration
        else None,
        background=_background(plan),
        passed_over=dict(plan.passed_over),
        failures=failures,
        config=plan.config.model_dump(mode="json"),
        commit=git_commit(),
        seconds=round(time.perf_counter() - started, 2),
        error=error if failures else None,
    )
    write(plan.folder, report)
    _write_all(plan, images)
    show(table(report), f"table and pictures: {plan.folder}")
    if (labels := plan.config.predict.labels) is not None and images:
        named = dict(zip(names, plan.sources, strict=True))
        by_clip = plan.checkpoint is None
        labels_table.write_predicted(labels, named, images, plan.classes, by_clip=by_clip)
        show(f"labels table: {labels} (correct it, and train by --dataset folder:{labels.parent})")
    return report


def _make(plan: PredictPlan, names: Sequence[str], done: dict[str, dict[str, Any]]) -> list[str]:
    """Make the images that are not done, and write each at once; what went wrong."""
    from pipeline.work import prediction

    def keep(image: dict[str, Any]) -> None:
        done[image["name"]] = image
        _append(plan, image)

    missing = {
        name: source for name, source in zip(names, plan.sources, strict=True) if name not in done
    }
    return prediction.predict_all(plan, missing, len(names), keep)


def _write_all(plan: PredictPlan, images: Iterable[dict[str, Any]]) -> None:
    images = list(images)
    write_text(plan.folder / _LINES, "".join(f"{json.dumps(image)}\n" for image in images))
    write_text(plan.folder / _TABLE, csv_table(plan, images))


def _append(plan: PredictPlan, image: dict[str, Any]) -> None:
    for name, text in (
        (_LINES, f"{json.dumps(image)}\n"),
        (_TABLE, csv_table(plan, [image], head=False)),
    ):
        with (plan.folder / name).open("a", encoding="utf-8", newline="") as file:
            file.write(text)


def _cautions(plan: PredictPlan) -> list[str]:
    """What has to be known of every result."""
    cautions = warnings_of(plan.config)
    untrained = plan.untrained
    if untrained:
        shown = ", ".join(untrained[:5]) + (", ..." if len(untrained) > 5 else "")
        cautions.append(
            f"the checkpoint was not trained on {len(untrained)} of {len(plan.classes)} classes "
            f"({shown}): CLIP itself scores them, on its own scale, which is no probability "
            f"({page('untrained_names')})"
        )
    if plan.checkpoint is not None and not plan.gives_probabilities:
        cautions.append(
            "the scores of this checkpoint's method are no probabilities: they rank images, and "
            "every class that was trained competes for the pixels"
        )
    if len(plan.classes) == 1:
        cautions.append("with one class alone CLIP's share is always 1; name others beside it")
    return cautions


def _background(plan: PredictPlan) -> str:
    """The rule for background, in words."""
    theta = plan.config.predict.threshold
    if not plan.locates or len(plan.untrained) == len(plan.classes):
        return f"where the largest softmax of 100 x min-max scores over classes is below {theta:g}"
    wins = "class that is there" if plan.gives_probabilities else "trained class"
    return f"where no {wins} wins, or its own prompt pair gives that place less than {theta:g}"


def table(report: PredictReport) -> str:
    """The report for people: a few lines an image, the likeliest classes first."""
    by = {
        (True, BY_METHOD): "checkpoint",
        (False, BY_CLIP): "CLIP: not trained",
        (None, BY_CLIP): "CLIP",
    }
    asked = report.config["predict"]["untrained_probability"]
    every = [row for image in report.images for row in image["scores"]]
    scored = any(row.get("score") is not None and row["probability"] is None for row in every)
    clip_tells = any("clip_probability" in row for row in every)
    columns = [
        Column("class", width=23, is_left=True),
        Column("there", width=5, is_left=True),
        Column("score" if scored else "probability", ".3f", width=11),
        Column("above", ".3f", width=6),
        Column("CLIP cosine", ".3f"),
        Column("CLIP share", ".3f"),
        *([Column("CLIP probability", ".3f")] if clip_tells else []),
        Column("pixels", ".1%", width=7),
        Column("scored by", width=18 if not asked else 16, is_left=True),
        *([Column("untrained probability", ".3f", is_left=True)] if asked else []),
    ]
    lines = []
    for image in report.images:
        lines.append(image["image"])
        rows = [
            (
                short(row["class"], 23),
                "yes" if row["present"] else "no",
                row["score" if scored else "probability"],
                row["threshold"],
                row["clip_cosine"],
                row["clip_share"],
                *([row["clip_probability"]] if clip_tells else []),
                row["pixel_share"],
                by[row["trained"], row["scored_by"]],
                *([row.get("untrained_probability", "")] if asked else []),
            )
            for row in image["scores"][:_MOST_ROWS]
        ]
        lines += aligned(columns, rows, indent="  ")
        if len(image["scores"]) > _MOST_ROWS:
            lines.append(f"  and {len(image['scores']) - _MOST_ROWS} more in {_TABLE}")
    told = (
        "score: of the checkpoint, on a scale of its own, to compare images by"
        if scored
        else "probability: of the checkpoint, that the class is there, each by itself"
        + (
            ", calibrated on the images that its training held out"
            if report.calibration is not None
            else ""
        )
    )
    lines.append(f"taken: {report.taken}")
    lines += remarks(report.warnings)
    lines += [f"passed over in {folder}: {what}" for folder, what in report.passed_over.items()]
    lines += [
        f"there (above): {_rule(report)}",
        f"{told}; CLIP cosine: the",
        "largest of any place with the class's text, no probability, to compare images by; CLIP",
        "share: softmax over these classes, they sum to 1; pixels: share of the mask. Background:",
        report.background,
    ]
    if clip_tells:
        lines.append(
            "CLIP probability: of the whole image, each class by itself, by the sigmoid that this"
            " CLIP was trained by"
        )
    return "\n".join(lines)


def _rule(report: PredictReport) -> str:
    """When a class counts as present, in words."""
    known = report.calibration
    by_clip = "a share above the even one, 1 / classes"
    if any("clip_probability" in row for image in report.images for row in image["scores"]):
        by_clip = "CLIP's probability above 0.5"
    if report.checkpoint is None:
        return by_clip
    own = "a probability above 0.5"
    if known is not None:
        own = f"a probability above the class's own threshold, chosen for {known['rule']}"
        if known["untrained_cosine"] is not None:
            by_clip = f"a cosine above {known['untrained_cosine']:.3f}, best for those of training"
    return f"{own}; of a class that was not trained, {by_clip}"


def _columns(plan: PredictPlan) -> list[str]:
    """What is told of each class."""
    columns = [
        "class", "present", "trained", "scored_by", "probability", "threshold", "clip_cosine",
        "clip_share", "pixel_share",
    ]  # fmt: skip
    if plan.clip_tells:
        columns.append("clip_probability")
    if plan.config.predict.untrained_probability:
        columns.append("untrained_probability")
    if plan.checkpoint is not None and not plan.gives_probabilities:
        columns.append("score")
    return columns


def csv_table(plan: PredictPlan, images: Iterable[Mapping[str, Any]], *, head: bool = True) -> str:
    """One row an image and class."""
    columns = _columns(plan)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if head:
        writer.writerow(["image", *columns])
    for image in images:
        for row in image["scores"]:
            writer.writerow([image["image"], *(row[column] for column in columns)])
    return text.getvalue()


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plan = plan_predict(config)
    return "\n".join(
        [
            f"{counted(len(plan.sources), 'image')}, "
            f"{counted(len(plan.classes), 'class', 'classes')}, to {plan.folder}",
            f"taken: {plan.taken}",
            *(f"warning: {caution}" for caution in _cautions(plan)),
            *(f"passed over in {folder}: {what}" for folder, what in plan.passed_over.items()),
            f"background: {_background(plan)}",
        ]
    )
