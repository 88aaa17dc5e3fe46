"""Any images and class names to scores, maps and masks."""

import csv
import io
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.choice import NoCheckpointError, take_checkpoint
from pipeline.cli import Report, main
from pipeline.config import Config
from pipeline.errors import UsageError
from pipeline.features import describe_backbone, open_backbone

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dclip.paths import AnyPath
    from dclip.prediction import Prediction

log = logging.getLogger(__name__)

DESCRIPTION = """\
Say which classes images show, and where: any images, any class names.

examples:
  python -m pipeline.predict photo.jpg --classes "dog, horse, person"
  python -m pipeline.predict folder https://host/a.jpg --classes "dog, horse" --checkpoint FILE
  python -m pipeline.predict photo.jpg --classes "dog, horse" --zero-shot
Prints a table and writes it as CSV and JSON, with three pictures an image: -heat.png (a map a
class), -mask.png (a palette PNG: 0 background, then the classes as given; the size is the image's)
and -overlay.png (the mask over the image). Classes need not be those that were trained on; the
table says which were. An image that cannot be read is named at the end, with exit code 1."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_MOST_ROWS = 12  # of an image, that the terminal shows


@dataclass(frozen=True)
class PredictPlan:
    """What is looked at, for what, and where the results go.

    Attributes:
        sources: Image files.
        classes: Their names.
        checkpoint: File of the projectors; None for frozen CLIP.
        trained_classes: Classes they were trained on.
        kind: Local features that maps are made of.
        folder: Of the results; the name is a hash of all that shapes them.
    """

    sources: "list[AnyPath]"
    classes: tuple[str, ...]
    checkpoint: Path | None
    trained_classes: tuple[str, ...]
    kind: str
    folder: Path


def plan_predict(config: Config) -> PredictPlan:
    """What the settings ask for.

    Raises:
        UsageError: No image or class, a class twice, more classes than a mask holds, a folder
            without images, or a checkpoint where none is wanted.
        StageError: The checkpoint is missing, damaged, or of another backbone.
    """
    from dclip.shards import digest, file_digest
    from pipeline.systems import read_origin

    wanted = config.predict
    classes = _class_names(wanted.classes)
    sources = _sources(wanted.paths)
    backbone = describe_backbone(config)
    checkpoint, kind = None, "value"
    trained: tuple[str, ...] = ()
    if not wanted.zero_shot:
        try:
            checkpoint = wanted.checkpoint or take_checkpoint(config)
        except NoCheckpointError as error:
            raise NoCheckpointError(f"{error}, or --zero-shot for frozen CLIP alone") from None
        about, kind = read_origin(checkpoint, backbone)
        trained = tuple(about.class_names)
    elif wanted.checkpoint is not None:
        raise UsageError("--zero-shot takes no --checkpoint; give one of them")
    identity = {
        "sources": [str(source.absolute()) for source in sources],
        "classes": list(classes),
        "weights": checkpoint and file_digest(checkpoint),
        "features": backbone.space(kind),
        "threshold": wanted.threshold,
    }
    folder = config.output.absolute() / "predictions" / digest(identity)[:12]
    return PredictPlan(sources, classes, checkpoint, trained, kind, folder)


def _class_names(given: list[str]) -> tuple[str, ...]:
    """Class names without spaces around them, each once."""
    from dclip.prompts import prompt_pairs
    from dclip.segmentation import MAX_CLASSES

    classes = tuple(name.strip() for name in given)
    try:
        prompt_pairs(classes)
    except ValueError as error:
        raise UsageError(f'--classes "dog, horse, person": {error}') from None
    if len(classes) >= MAX_CLASSES:
        raise UsageError(f"a mask holds {MAX_CLASSES - 1} classes, not {len(classes)}")
    return classes


def _sources(given: list[str]) -> "list[AnyPath]":
    """The images that are named, and those of folders that are, sorted."""
    from dclip.paths import has_folders
    from pipeline.listings import path_of

    if not given:
        raise UsageError("no image; name some: python -m pipeline.predict photo.jpg folder ...")
    sources: list[AnyPath] = []
    for place in map(path_of, given):
        if not (has_folders(place) and place.is_dir()):
            sources.append(place)
            continue
        found = [path for path in place.iterdir() if path.name.lower().endswith(_SUFFIXES)]
        if not found:
            raise UsageError(f"folder {place} has no image ({', '.join(_SUFFIXES)}) directly in it")
        sources += sorted(found, key=str)
    return sources


def _names(sources: "list[AnyPath]") -> list[str]:
    """What the files of each image are called: its own name, with a number where that is taken."""
    names: list[str] = []
    for source in sources:
        path = source.name if isinstance(source, Path) else unquote(urlsplit(str(source)).path)
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in PurePosixPath(path).stem)
        name, number = stem or "image", 2
        while name in names:
            name, number = f"{stem or 'image'}-{number}", number + 1
        names.append(name)
    return names


class Predictor:
    """A backbone and projectors that know the names of the classes.

    Args:
        config: Settings.
        plan: What is looked for.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, config: Config, plan: PredictPlan, device: str) -> None:
        from dclip.prompts import encode_class_names, encode_prompt_pairs
        from pipeline.checkpoints import load_checkpoint

        self._plan, self._device = plan, device
        self._threshold = config.predict.threshold
        self._backbone = open_backbone(config, device=device)
        self._texts = encode_class_names(self._backbone, plan.classes).float()
        self._pairs = encode_prompt_pairs(self._backbone, plan.classes).float()
        self._model = None
        if plan.checkpoint is not None:
            self._model = load_checkpoint(plan.checkpoint)[0].to(device)

    def predict(self, image: "Image.Image") -> "Prediction":
        """What one image shows; its mask has the size of the image."""
        import torch

        from dclip.data.pixels import image_to_tensor
        from dclip.prediction import predict_image

        backbone = self._backbone
        pixels = image_to_tensor(image, backbone.resolution, backbone.mean, backbone.std)
        with torch.no_grad():
            features = backbone.encode_images(pixels[None].to(self._device), kind=self._plan.kind)
        return predict_image(
            features,
            backbone.grid(backbone.resolution, backbone.resolution),
            (image.height, image.width),
            has_global_token=backbone.include_global_token,
            texts=self._texts,
            pairs=self._pairs,
            model=self._model,
            threshold=self._threshold,
        )


def run(config: Config) -> Report:
    """Predict every image, draw it, and write and print the table.

    An image that cannot be read is left out and named in the report's ``error``.
    """
    from dclip.data.images import ImageError, read_image
    from dclip.paths import write_text
    from pipeline.cluster import choose_device
    from pipeline.progress import progress
    from pipeline.provenance import git_commit

    started = time.perf_counter()
    plan = plan_predict(config)
    device, why = choose_device(config.device)
    log.info("predict: %d images, %s (%s)", len(plan.sources), device, why)
    if len(plan.classes) == 1:
        log.warning("predict: with one class alone CLIP's share is always 1; name others beside it")
    predictor = Predictor(config, plan, device)
    plan.folder.mkdir(parents=True, exist_ok=True)
    images, failures = [], []
    with progress("predict", len(plan.sources), "images") as bar:
        for source, name in zip(plan.sources, _names(plan.sources), strict=True):
            try:
                image = read_image(source)
            except (ImageError, OSError) as error:
                failures.append(" ".join(str(error).split()))
                log.warning("predict: %s", failures[-1])
            else:
                found = predictor.predict(image)
                files = _draw(plan, name, image, found)
                images.append({"image": str(source), "scores": _scores(plan, found), **files})
            bar.advance(1)
    report: Report = {
        "stage": "predict",
        "images": images,
        "class_names": list(plan.classes),
        "checkpoint": plan.checkpoint and str(plan.checkpoint),
        "trained_classes": list(plan.trained_classes),
        "backbone": describe_backbone(config).name,
        "features": plan.kind,
        "background": _background(config, plan),
        "failures": failures,
        "config": config.model_dump(mode="json"),
        "commit": git_commit(),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if failures:
        report["error"] = f"{len(failures)} of {len(plan.sources)} images left out: " + "; ".join(
            failures
        )
    write_text(plan.folder / "report.json", json.dumps(report, indent=1))
    write_text(plan.folder / "predictions.csv", csv_table(report))
    sys.stdout.write(f"{table(report)}\ntable and pictures: {plan.folder}\n")
    return report


def _scores(plan: PredictPlan, found: "Prediction") -> list[dict[str, Any]]:
    """What is said of each class, the likeliest first."""
    import torch

    pixels = torch.bincount(found.mask.flatten().long(), minlength=len(plan.classes) + 1)
    presence = None if found.presence is None else found.presence.tolist()
    rows = [
        {
            "class": name,
            "trained": name in plan.trained_classes if plan.checkpoint else None,
            "probability": None if presence is None else presence[position],
            "clip_share": float(found.zero_shot[position]),
            "pixel_share": int(pixels[position + 1]) / found.mask.numel(),
        }
        for position, name in enumerate(plan.classes)
    ]
    key = "clip_share" if presence is None else "probability"
    return sorted(rows, key=lambda row: -float(row[key] or 0))


def _draw(
    plan: PredictPlan, name: str, image: "Image.Image", found: "Prediction"
) -> dict[str, str]:
    """Write the three pictures of one image; their paths."""
    from dclip.paths import atomic_write
    from pipeline import mask_figures
    from pipeline.canvas import save

    mask: np.ndarray = found.mask.cpu().numpy()
    paths = {what: plan.folder / f"{name}-{what}.png" for what in ("heat", "mask", "overlay")}
    rows = _scores(plan, found)
    order = [plan.classes.index(row["class"]) for row in rows]
    titles = [_title(row) for row in rows]
    save(
        mask_figures.heat_maps(
            image,
            found.maps[order].float().cpu().numpy(),
            titles,
            label="cosine with class" if found.presence is None else "probability at that place",
            limits=None if found.presence is None else (0.0, 1.0),
        ),
        paths["heat"],
    )
    with atomic_write(paths["mask"]) as temporary:
        mask_figures.palette_image(mask).save(temporary, format="PNG")
    save(mask_figures.overlay(image, mask, plan.classes), paths["overlay"])
    return {what: str(path) for what, path in paths.items()}


def _title(row: dict[str, Any]) -> str:
    value = row["clip_share"] if row["probability"] is None else row["probability"]
    name = row["class"] if len(row["class"]) <= 20 else f"{row['class'][:19]}\u2026"
    return f"{name}  {value:.2f}"


def _background(config: Config, plan: PredictPlan) -> str:
    """The rule for background, in words."""
    theta = config.predict.threshold
    if plan.checkpoint is None:
        return f"where the largest softmax of 100 x min-max scores over classes is below {theta:g}"
    return (
        "where no class of probability 0.5 or more wins, or its own prompt pair gives that place "
        f"less than {theta:g}"
    )


def table(report: Report) -> str:
    """The report for people: a few lines an image, the likeliest classes first."""
    known = {True: "yes", False: "no", None: "-"}
    lines = []
    for image in report["images"]:
        lines.append(image["image"])
        lines.append(
            f"  {'class':24}{'probability':>12}{'CLIP share':>12}{'pixels':>9}  trained on"
        )
        for row in image["scores"][:_MOST_ROWS]:
            probability = "-" if row["probability"] is None else f"{row['probability']:.3f}"
            lines.append(
                f"  {row['class']:24}{probability:>12}{row['clip_share']:>12.3f}"
                f"{row['pixel_share']:>9.1%}  {known[row['trained']]}"
            )
        if len(image["scores"]) > _MOST_ROWS:
            lines.append(f"  and {len(image['scores']) - _MOST_ROWS} more in predictions.csv")
    if report["checkpoint"] is None:
        lines.append("no projectors: frozen CLIP alone, which tells no probability of presence")
    else:
        trained = report["trained_classes"]
        new = [name for name in report["class_names"] if name not in trained]
        lines.append(
            f"projectors {report['checkpoint']}, trained on {len(trained)} classes; "
            + (f"not among them: {', '.join(new)}" if new else "all of these are among them")
        )
    lines += [
        "probability: that the class is there, each by itself; CLIP share: softmax over these",
        f"classes, they sum to 1; pixels: share of the mask. Background: {report['background']}",
    ]
    return "\n".join(lines)


def csv_table(report: Report) -> str:
    """One row an image and class."""
    columns = ["class", "trained", "probability", "clip_share", "pixel_share"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for image in report["images"]:
        for row in image["scores"]:
            writer.writerow([image["image"], *(row[column] for column in columns)])
    return text.getvalue()


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    try:
        plan = plan_predict(config)
    except NoCheckpointError as missing:
        sources, classes = _sources(config.predict.paths), _class_names(config.predict.classes)
        return f"{len(sources)} images, {len(classes)} classes\nmissing: {missing}"
    known = [name for name in plan.classes if name in plan.trained_classes]
    return "\n".join(
        [
            f"{len(plan.sources)} images, {len(plan.classes)} classes, to {plan.folder}",
            f"projectors {plan.checkpoint}, trained on {len(known)} of these classes"
            if plan.checkpoint
            else "frozen CLIP alone",
            f"background: {_background(config, plan)}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main("predict"))
