"""Any images and class names to scores, maps and masks."""

import csv
import hashlib
import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from dclip.words import counted, short
from pipeline.features.plan import describe_backbone, warnings_of
from pipeline.records.choice import NoCheckpointError, take_checkpoint
from pipeline.settings.config import TOY_DATASET, Config, usual_backbone
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import UsageError, told
from pipeline.terminal.pages import page

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dclip.prediction import Prediction
    from dclip.store.paths import AnyPath
    from pipeline.records.origin import About

log = logging.getLogger(__name__)


_MOST_ROWS = 12  # of an image, that the terminal shows
_MOST_CLASSES = (1 << 16) - 1  # beside background, that a PNG of 16 bits holds
_LONGEST_NAME = 100  # bytes of the name of a picture, without what is added to it
_VERSION = 2  # raise it when the same images and settings give another result


@dataclass(frozen=True)
class PredictPlan:
    """What is looked at, for what, and where the results go.

    Attributes:
        config: The settings, with the backbone that is taken.
        sources: Image files.
        passed_over: Of each folder, what was not taken for an image, in words.
        classes: Their names.
        trained_as: Of each class, the name it was trained by; None if it was not.
        checkpoint: File of the projectors; None for frozen CLIP.
        about: Their origin.
        kind: Local features that maps are made of.
        taken: What answers, in a line.
        folder: Of the results; the name is a hash of all that shapes them.
    """

    config: Config
    sources: "list[AnyPath]"
    passed_over: Mapping[str, str]
    classes: tuple[str, ...]
    trained_as: tuple[str | None, ...]
    checkpoint: Path | None
    about: "About | None"
    kind: str
    taken: str
    folder: Path

    @property
    def untrained(self) -> list[str]:
        """Classes that projectors were not trained on; none without projectors."""
        if self.checkpoint is None:
            return []
        pairs = zip(self.classes, self.trained_as, strict=True)
        return [name for name, trained in pairs if trained is None]


def plan_predict(config: Config) -> PredictPlan:
    """What the settings ask for.

    Raises:
        UsageError: No image or class, names that are one text to CLIP or unfit, a folder without
            images, or a checkpoint where none is wanted.
        StageError: The checkpoint is missing, damaged, or of another backbone.
    """
    from dclip.store.shards import digest, file_digest
    from dclip.texts import fold_name
    from pipeline.features.preflight import require_fit_names
    from pipeline.work.systems import read_origin

    wanted = config.predict
    classes = _class_names(wanted.classes)
    sources, passed_over = _sources(wanted.paths)
    config, checkpoint, why = _take(config)
    require_fit_names(classes, of="--classes", backbone=config.backbone)
    backbone = describe_backbone(config)
    about, kind = None, "value"
    taken = f"frozen CLIP {backbone.name} alone, without projectors ({why})"
    if checkpoint is not None:
        about, kind = read_origin(checkpoint, backbone)
        taken = (
            f"projectors {checkpoint} ({why}): {about.name}, trained on "
            f"{counted(len(about.class_names), 'class', 'classes')} and {about.made_on}"
        )
    known = {fold_name(name): name for name in about.class_names} if about else {}
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
        taken=taken,
        folder=config.output.absolute() / "predictions" / digest(identity)[:12],
    )


def _take(config: Config) -> tuple[Config, Path | None, str]:
    """The settings with the backbone that is meant, the checkpoint if there is one, and why so.

    Raises:
        UsageError: Both a checkpoint and none are asked for.
        StageError: The checkpoint that is named is none.
    """
    from pipeline.records.origin import read_about

    wanted = config.predict
    if wanted.zero_shot and wanted.checkpoint is not None:
        raise UsageError("--zero-shot takes no --checkpoint; give one of them")
    if wanted.zero_shot:
        return _with_real_clip(config), None, "--zero-shot"
    if wanted.checkpoint is not None:
        if not wanted.checkpoint.is_file():
            raise NoCheckpointError(
                f"no checkpoint at {wanted.checkpoint}; give --checkpoint FILE, or leave it out "
                "for frozen CLIP alone"
            )
        return _with_backbone_of(config, read_about(wanted.checkpoint)), wanted.checkpoint, "given"
    try:
        return config, take_checkpoint(config), "those of these settings"
    except NoCheckpointError:
        return (
            _with_real_clip(config),
            None,
            "these settings have no checkpoint; --checkpoint FILE gives one",
        )


def _with_real_clip(config: Config) -> Config:
    """The settings for photographs: no tiny CLIP, unless somebody named it."""
    if "backbone" in config.model_fields_set or config.dataset != TOY_DATASET:
        return config
    return config.model_copy(update={"backbone": usual_backbone({})})


def _with_backbone_of(config: Config, about: "About") -> Config:
    """The settings with the backbone of a checkpoint, as far as they leave it open.

    Raises:
        UsageError: It is code of somebody's own, which no file may start.
    """
    if "backbone" in config.model_fields_set:
        return config
    name, _, tag = about.backbone_name.partition("/")
    meant: dict[str, Any] = {"backbone": name, "pretrained": tag or None}  # of an older checkpoint
    if about.encoder is not None:
        names = ("backbone", "pretrained", "resolution", "include_global_token")
        meant = about.encoder.model_dump(include=set(names))
    if ":" in meant["backbone"]:
        raise UsageError(
            f"the checkpoint was trained on a backbone of somebody's own, {meant['backbone']!r}; "
            f"to run that code, say so: --backbone {meant['backbone']}"
        )
    left_open = {key: value for key, value in meant.items() if key not in config.model_fields_set}
    return config.model_copy(update=left_open)


def _class_names(given: list[str]) -> tuple[str, ...]:
    """Class names without spaces around them, no two of them one text to CLIP."""
    from dclip.prompts import prompt_pairs
    from pipeline.features.preflight import one_text_note

    if not given:
        raise UsageError('name the classes to look for: --classes "dog, horse, person"')
    classes = tuple(name.strip() for name in given)
    try:
        prompt_pairs(classes)
    except ValueError as error:
        raise UsageError(f"--classes: {error}") from None
    if note := one_text_note(classes):
        raise UsageError(f"--classes: {note}; leave one of each")
    if len(classes) > _MOST_CLASSES:
        raise UsageError(f"a mask holds {_MOST_CLASSES} classes, not {len(classes)}")
    return classes


def _sources(given: list[str]) -> "tuple[list[AnyPath], dict[str, str]]":
    """The images that are named and those of folders that are, sorted; what folders have beside.

    A file that is named is tried whatever it is called.
    """
    from dclip.data.images import IMAGE_SUFFIXES, is_image_name, tell_passed_over
    from dclip.store.paths import has_folders
    from pipeline.features.listings import path_of

    if not given:
        raise UsageError("no image; name some: python -m pipeline.predict photo.jpg folder ...")
    sources: list[AnyPath] = []
    passed_over: dict[str, str] = {}
    for place in map(path_of, given):
        if not (has_folders(place) and place.is_dir()):
            sources.append(place)
            continue
        if isinstance(place, Path):
            entries = list(place.iterdir())
            names = [path.name for path in entries if not path.is_dir()]
            folders = len(entries) - len(names)
        else:
            names, folders = list(place.sizes()), 0
        found = sorted(name for name in names if is_image_name(name))
        beside = tell_passed_over(name for name in names if not is_image_name(name))
        if folders:
            inside = f"{counted(folders, 'folder')}, which are not looked into"
            beside = ", ".join(filter(None, [beside, inside]))
        if not found:
            raise UsageError(
                f"folder {place} has no image ({', '.join(IMAGE_SUFFIXES)}) directly in it"
                + (f"; it has {beside}" if beside else "")
            )
        if beside:
            passed_over[str(place)] = beside
        sources += [place / name for name in found]
    return sources, passed_over


def _names(sources: "Sequence[AnyPath]") -> list[str]:
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


class Predictor:
    """A backbone and projectors that know the names of the classes.

    Args:
        plan: What is looked for.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, plan: PredictPlan, device: str) -> None:
        import torch

        from dclip.prompts import encode_class_names, encode_prompt_pairs
        from pipeline.features.opened import open_backbone
        from pipeline.records.checkpoints import load_checkpoint

        self._plan, self._device = plan, device
        self._backbone = open_backbone(plan.config, device=device)
        # as in training, whatever the case in which a name is given
        spelt = [old or new for old, new in zip(plan.trained_as, plan.classes, strict=True)]
        self._names = spelt
        self._texts = encode_class_names(self._backbone, spelt).float()
        self._pairs = encode_prompt_pairs(self._backbone, spelt).float()
        self._model = self._trained = None
        if plan.checkpoint is not None:
            self._model = load_checkpoint(plan.checkpoint)[0].on(device)
            self._trained = torch.tensor([name is not None for name in plan.trained_as])

    def predict(self, image: "Image.Image") -> "Prediction":
        """What one image shows; its mask has the size of the image."""
        import torch

        from dclip.data.pixels import image_to_tensor
        from dclip.prediction import UntrainedWarning, predict_image

        backbone, wanted = self._backbone, self._plan.config.predict
        pixels = image_to_tensor(image, backbone.resolution, backbone.mean, backbone.std)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrainedWarning)  # it is told once, by name
            features = backbone.encode_images(pixels[None].to(self._device), kind=self._plan.kind)
            return predict_image(
                features,
                backbone.grid(backbone.resolution, backbone.resolution),
                (image.height, image.width),
                has_global_token=backbone.include_global_token,
                texts=self._texts,
                pairs=self._pairs,
                class_names=self._names,
                model=self._model,
                trained=self._trained,
                untrained_probability=wanted.untrained_probability,
                threshold=wanted.threshold,
            )


# ---------------------------------------------------------------------------------------------
# Results, one image after the other
# ---------------------------------------------------------------------------------------------

_LINES, _TABLE, _REPORT = "predictions.jsonl", "predictions.csv", "report.json"


def _stamp(source: "AnyPath") -> list[int] | None:
    """What changes when a local file does; None where nothing can be said."""
    try:
        about = source.stat() if isinstance(source, Path) else None
    except OSError:
        return None
    return about and [about.st_size, about.st_mtime_ns]


def _standing(plan: PredictPlan, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Images, by the name of their files, that an earlier run of this plan finished."""
    try:
        lines = (plan.folder / _LINES).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    stamps = {name: _stamp(source) for name, source in zip(names, plan.sources, strict=True)}
    found = {}
    for line in lines:
        try:
            image = json.loads(line)
            name, pictures = image["name"], image["pictures"]
        except (ValueError, KeyError, TypeError):
            continue  # the line at which a run was stopped
        is_same = stamps.get(name) is not None and image.get("stamp") == stamps[name]
        if is_same and pictures and all(Path(path).is_file() for path in pictures.values()):
            found[name] = image
    return found


def run(config: Config) -> Report:
    """Predict every image, draw it, and write and print the table.

    Each image is written as soon as it is done, and one that stands already is left as it is. An
    image that cannot be read or drawn is named in the report's ``error``.
    """
    from dclip.store.paths import write_text
    from pipeline.cluster.device import choose_device
    from pipeline.records.provenance import git_commit

    started = time.perf_counter()
    plan = plan_predict(config)
    config = plan.config
    device, why = choose_device(config.device)
    log.info("predict: %s, %s (%s)", counted(len(plan.sources), "image"), device, why)
    log.info("predict: taken: %s", plan.taken)
    for place, beside in plan.passed_over.items():
        log.info("predict: %s: passed over %s", place, beside)
    cautions = _cautions(plan)
    for caution in cautions:
        log.warning("predict: warning: %s", caution)
    plan.folder.mkdir(parents=True, exist_ok=True)
    names = _names(plan.sources)
    done = _standing(plan, names)
    if done:
        log.info("predict: %d of %d images stand", len(done), len(names))
    images, failures = _predict_missing(plan, names, done, device)
    report: Report = {
        "stage": "predict",
        "taken": plan.taken,
        "warnings": cautions,
        "images": images,
        "class_names": list(plan.classes),
        "checkpoint": plan.checkpoint and str(plan.checkpoint),
        "trained_classes": plan.about.class_names if plan.about else [],
        "backbone": describe_backbone(config).name,
        "features": plan.kind,
        "background": _background(plan),
        "passed_over": dict(plan.passed_over),
        "failures": failures,
        "config": config.model_dump(mode="json"),
        "commit": git_commit(),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if failures:
        report["error"] = f"{len(failures)} of {len(plan.sources)} images left out: " + "; ".join(
            failures
        )
    write_text(plan.folder / _REPORT, json.dumps(report, indent=1))
    _write_all(plan, images)
    sys.stdout.write(f"{table(report)}\ntable and pictures: {plan.folder}\n")
    return report


def _predict_missing(
    plan: PredictPlan, names: Sequence[str], done: Mapping[str, dict[str, Any]], device: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """All images, in order, of which those that are not done are made; and what went wrong."""
    from pipeline.terminal.progress import progress

    _write_all(plan, done.values())
    images, failures = [], []
    predictor: Predictor | None = None
    with progress("predict", len(names), "images", len(done)) as bar:
        for source, name in zip(plan.sources, names, strict=True):
            if name in done:
                images.append(done[name])
                continue
            predictor = predictor or Predictor(plan, device)
            image, failure = _predict_one(plan, predictor, source, name)
            if failure:
                failures.append(failure)
                log.warning("predict: %s", failure)
            if image is not None:
                images.append(image)
                _append(plan, image)
            bar.advance(1)
    return images, failures


def _predict_one(
    plan: PredictPlan, predictor: Predictor, source: "AnyPath", name: str
) -> tuple[dict[str, Any] | None, str]:
    """What is written of one image, as far as it goes, and what went wrong, if anything did.

    Whatever happens to it, the others go on: so any error is caught.
    """
    from dclip.data.images import read_image

    shown = _shown(source)
    image: dict[str, Any] = {"image": shown, "name": name, "stamp": _stamp(source), "pictures": {}}
    try:
        pixels = read_image(source)
        found = predictor.predict(pixels)
        image["scores"] = _scores(plan, found)
    except Exception as error:
        reason = told(error)
        return None, reason if shown in reason else f"{shown}: {reason}"
    try:
        image["pictures"] = _draw(plan, name, pixels, found)
    except Exception as error:
        return image, f"{shown}: scores are written, its pictures are not: {told(error)}"
    return image, ""


def _shown(source: "AnyPath") -> str:
    """A source as text that every file can hold; bytes that are no UTF-8 as their numbers."""
    return str(source).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _write_all(plan: PredictPlan, images: Iterable[dict[str, Any]]) -> None:
    from dclip.store.paths import write_text

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
    found = warnings_of(plan.config)
    untrained = plan.untrained
    if untrained:
        shown = ", ".join(untrained[:5]) + (", ..." if len(untrained) > 5 else "")
        found.append(
            f"the projectors were not trained on {len(untrained)} of {len(plan.classes)} classes "
            f"({shown}): CLIP itself scores them, on its own scale, which is no probability "
            f"({page('untrained_names')})"
        )
    if len(plan.classes) == 1:
        found.append("with one class alone CLIP's share is always 1; name others beside it")
    return found


def _scores(plan: PredictPlan, found: "Prediction") -> list[dict[str, Any]]:
    """What is said of each class: those of the projectors first, then CLIP's, the likeliest first.

    A class that was not trained has no share of pixels, unless none of them was.
    """
    import torch

    count = len(plan.classes)
    pixels = torch.bincount(found.mask.flatten().long(), minlength=count + 1).tolist()
    presence = [None] * count if found.presence is None else found.presence.tolist()
    cosines, shares = found.cosine.tolist(), found.zero_shot.tolist()
    by_clip = len(plan.untrained) == count or plan.checkpoint is None
    rows = []
    for at, (name, trained) in enumerate(zip(plan.classes, plan.trained_as, strict=True)):
        is_trained = trained is not None
        row = {
            "class": name,
            "trained": is_trained if plan.checkpoint else None,
            "scored_by": "projectors" if is_trained else "clip",
            "probability": presence[at] if is_trained else None,
            "clip_cosine": cosines[at],
            "clip_share": shares[at],
            "pixel_share": pixels[at + 1] / found.mask.numel() if is_trained or by_clip else None,
        }
        if plan.config.predict.untrained_probability:
            row["untrained_probability"] = None if is_trained else presence[at]
        rows.append(row)
    key = "clip_share" if plan.checkpoint is None else "clip_cosine"
    return sorted(
        rows,
        key=lambda row: (row["scored_by"] == "clip", -float(row["probability"] or row[key])),
    )


def _draw(
    plan: PredictPlan, name: str, image: "Image.Image", found: "Prediction"
) -> dict[str, str]:
    """Write the pictures of one image; their paths."""
    from dclip.store.paths import atomic_write
    from pipeline.pictures import mask_figures
    from pipeline.pictures.canvas import save

    mask: np.ndarray = found.mask.cpu().numpy()
    paths = {what: plan.folder / f"{name}-{what}.png" for what in ("mask", "overlay")}
    with atomic_write(paths["mask"]) as temporary:
        _mask_image(mask).save(temporary, format="PNG")
    save(mask_figures.overlay(image, mask, plan.classes), paths["overlay"])
    rows = _scores(plan, found)
    projected = [row for row in rows if row["scored_by"] == "projectors"]
    by_clip = [row for row in rows if row["scored_by"] == "clip"]
    for what, own, label, limits in (
        ("heat", projected, "probability at that place", (0.0, 1.0)),
        ("heat-clip" if projected else "heat", by_clip, "cosine with CLIP's text", None),
    ):
        if not own:
            continue
        paths[what] = plan.folder / f"{name}-{what}.png"
        order = [plan.classes.index(row["class"]) for row in own]
        save(
            mask_figures.heat_maps(
                image,
                found.maps[order].float().cpu().numpy(),
                [_title(row, plan) for row in own],
                label=label,
                limits=limits,
                title=_heading(plan, projected=own is projected),
            ),
            paths[what],
        )
    return {what: str(path) for what, path in paths.items()}


def _mask_image(mask: "np.ndarray") -> "Image.Image":
    """A mask as an image: with a palette, or of 16 bits where it may hold more than 254 classes."""
    import numpy as np
    from PIL import Image

    from pipeline.pictures import mask_figures

    if mask.dtype == np.uint8:
        return mask_figures.palette_image(mask)
    return Image.fromarray(mask.astype(np.uint16))


def _heading(plan: PredictPlan, *, projected: bool) -> str:
    """What a picture of maps is of."""
    backbone = describe_backbone(plan.config).name
    if projected:
        assert plan.checkpoint is not None
        return f"{backbone}, projectors {plan.checkpoint.stem}"
    untrained = " (classes that were not trained)" if plan.checkpoint is not None else ""
    return f"{backbone}, frozen{untrained}"


def _title(row: dict[str, Any], plan: PredictPlan) -> str:
    if row["probability"] is not None:
        value = row["probability"]
    else:
        value = row["clip_share" if plan.checkpoint is None else "clip_cosine"]
    return f"{short(row['class'], 20)}  {value:.2f}"


def _background(plan: PredictPlan) -> str:
    """The rule for background, in words."""
    theta = plan.config.predict.threshold
    if plan.checkpoint is None or len(plan.untrained) == len(plan.classes):
        return f"where the largest softmax of 100 x min-max scores over classes is below {theta:g}"
    return (
        "where no class of probability 0.5 or more wins, or its own prompt pair gives that place "
        f"less than {theta:g}"
    )


def table(report: Report) -> str:
    """The report for people: a few lines an image, the likeliest classes first."""
    by = {
        (True, "projectors"): "projectors",
        (False, "clip"): "CLIP: not trained",
        (None, "clip"): "CLIP",
    }
    asked = report["config"]["predict"]["untrained_probability"]
    lines = []
    for image in report["images"]:
        lines.append(image["image"])
        lines.append(
            f"  {'class':24}{'probability':>12}{'CLIP cosine':>13}{'CLIP share':>12}{'pixels':>9}"
            f"  {'scored by':18}{'untrained probability' if asked else ''}".rstrip()
        )
        for row in image["scores"][:_MOST_ROWS]:
            probability, pixels = row["probability"], row["pixel_share"]
            extra = row.get("untrained_probability")
            lines.append(
                f"  {short(row['class'], 23):24}"
                f"{'-' if probability is None else f'{probability:.3f}':>12}"
                f"{row['clip_cosine']:>13.3f}{row['clip_share']:>12.3f}"
                f"{'-' if pixels is None else f'{pixels:.1%}':>9}"
                f"  {by[row['trained'], row['scored_by']]:18}"
                f"{'' if extra is None else f'{extra:.3f}'}".rstrip()
            )
        if len(image["scores"]) > _MOST_ROWS:
            lines.append(f"  and {len(image['scores']) - _MOST_ROWS} more in {_TABLE}")
    lines.append(f"taken: {report['taken']}")
    lines += [f"warning: {caution}" for caution in report["warnings"]]
    lines += [f"passed over in {place}: {what}" for place, what in report["passed_over"].items()]
    lines += [
        "probability: of the projectors, that the class is there, each by itself; CLIP cosine: the",
        "largest of any place with the class's text, no probability, to compare images by; CLIP",
        "share: softmax over these classes, they sum to 1; pixels: share of the mask. Background:",
        report["background"],
    ]
    return "\n".join(lines)


def csv_table(plan: PredictPlan, images: Iterable[Mapping[str, Any]], *, head: bool = True) -> str:
    """One row an image and class."""
    columns = [
        "class", "trained", "scored_by", "probability", "clip_cosine", "clip_share", "pixel_share",
    ]  # fmt: skip
    if plan.config.predict.untrained_probability:
        columns.append("untrained_probability")
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
            *(f"passed over in {place}: {what}" for place, what in plan.passed_over.items()),
            f"background: {_background(plan)}",
        ]
    )
