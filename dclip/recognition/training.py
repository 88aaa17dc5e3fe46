"""A method trained on given images, in this process."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from tqdm import tqdm

from dclip.backbones import Backbone, require
from dclip.calibration import CalibrationError
from dclip.checkpoints.calibration import Calibration, Kind, Rule
from dclip.checkpoints.origin import FORMAT, About, Encoder
from dclip.clip_settings import ClipSettings
from dclip.data.folder import find_splits, read_folder, read_tables
from dclip.data.given import GivenImage, GivenImages
from dclip.data.listing import Listing
from dclip.fitting.batches import FeatureSource, hold_out
from dclip.fitting.fit import EpochReport, check_source, fit, scores_of
from dclip.fitting.held_out import calibrate_method
from dclip.fitting.images import ImageSource
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.logits import sigmoid_of
from dclip.methods.method import Method, Task, initial
from dclip.methods.registry import find_method, find_settings
from dclip.methods.settings import MethodSettings
from dclip.metrics import mean_average_precision
from dclip.provenance import git_commit
from dclip.recognition.features import features_of
from dclip.recognition.looking import Trained
from dclip.templates import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE
from dclip.texts import check_class_names, same_text

Labels = Any
"""What is in each image: names of classes (a list of lists, or a name each), or a table of 1, 0 and
-1 for unknown, as an array, a tensor or a data frame whose columns are the classes."""


@dataclass(frozen=True)
class Wanted:
    """What is trained, and how.

    Attributes:
        method: Name of the method.
        own: Its settings.
        loop: Those of the loop.
        kind: Of local features.
        seed: Of the weights and of the data.
        val_fraction: Share of the images that is held out, for thresholds and the mAP that is told.
        rule: What thresholds are chosen for.
        calibration: How probabilities are made.
    """

    method: str
    own: MethodSettings
    loop: Loop
    kind: str
    seed: int
    val_fraction: float
    rule: Rule
    calibration: Kind


def wanted_of(
    method: str,
    changes: Mapping[str, Any],
    *,
    kind: str = "value",
    preset: str | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    thresholds: str = "f1",
    calibration: Kind = "platt",
) -> Wanted:
    """Settings by name, each checked.

    Args:
        method: Name of the method.
        changes: Settings of the method or of the loop that differ from the preset's.
        kind: Of local features.
        preset: Defaults by name; left out: the method's usual ones.
        seed: Of the weights and of the data.
        val_fraction: Share of the images that is held out, in [0, 1).
        thresholds: See `Rule.parse`.
        calibration: How probabilities are made.

    Raises:
        ValueError: A name is unknown, or a value does not fit.
    """
    settings = find_settings(method)
    if settings.trained_by is None:
        raise ValueError(f"method {method!r} is not trained; ask frozen CLIP by dclip.load(name)")
    found = settings.preset_values(preset or settings.usual_preset())
    known = {*settings.model_fields, *Loop.model_fields} - {"preset"}
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"unknown setting {name!r} of {method}{hint}")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")
    own = {name: value for name, value in changes.items() if name in settings.model_fields}
    loop = {name: value for name, value in changes.items() if name in Loop.model_fields}
    return Wanted(
        method,
        settings.model_validate({**found.own, **own}),
        Loop.model_validate({**found.loop, **loop}),
        kind,
        seed,
        val_fraction,
        Rule.parse(thresholds),
        calibration,
    )


def listing_of(
    images: str | Path | Sequence[GivenImage],
    labels: Labels | None,
    class_names: Sequence[str] | None = None,
) -> Listing:
    """Images and labels as people give them.

    Args:
        images: A folder, or the images one by one.
        labels: A table of a folder (a path); or what is in each image; None for a folder that has
            its labels in it.
        class_names: Of the columns, or, where names are given, all there are and in which order.

    Raises:
        ValueError: They do not go together, or say nothing of any class.
        OSError: A file cannot be read.
    """
    if isinstance(images, str | Path):
        return _of_folder(Path(images), labels)
    if labels is None:
        raise ValueError("labels are missing; give what is in each image, or a folder with a table")
    names, marks = labels_of(labels, class_names)
    if len(marks) != len(images):
        raise ValueError(f"{len(images)} images, but labels of {len(marks)}")
    return GivenImages.of(images, marks, names)


def _of_folder(folder: Path, table: Labels | None) -> Listing:
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give a folder of images, or a list of them")
    if table is not None:
        if not isinstance(table, str | Path):
            raise ValueError("with a folder, labels are a table of it: give its path, or nothing")
        path = Path(table)
        path = path if path.is_file() else folder / path
        if not path.is_file():
            raise ValueError(f"no table of labels at {table}, nor in {folder}")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"table {path} lies outside {folder}, which its files are relative to")
        return read_tables(folder, "all", {"all": path}, is_of_split=lambda _: True)
    splits = list(find_splits(folder))
    if not splits:
        raise ValueError(
            f"{folder} has no table of labels; put one beside the images (columns file and labels),"
            " or give labels. Folders of YOLO, Label Studio and the like are read by python -m "
            "pipeline.run --dataset folder:DIR"
        )
    return read_folder(folder, "train" if "train" in splits else splits[0])


def labels_of(
    labels: Labels, class_names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], Int8[np.ndarray, "images classes"]]:
    """Class names, and a row of 1, 0 and -1 for each image.

    Args:
        labels: See `Labels`.
        class_names: Of the columns; where names are given, all there are.

    Raises:
        ValueError: They cannot be read.

    Example:
        >>> names, marks = labels_of([["dog"], ["cat", "dog"], []])
        >>> names, marks.tolist()
        (('cat', 'dog'), [[0, 1], [1, 1], [0, 0]])
    """
    if hasattr(labels, "columns") and hasattr(labels, "to_numpy"):
        class_names = [str(name) for name in labels.columns]
        labels = labels.to_numpy()
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    if not isinstance(labels, np.ndarray):
        rows = list(labels)
        if all(isinstance(row, str) or _are_names(row) for row in rows):
            return _of_names(rows, class_names)
        try:
            labels = np.asarray(rows)
        except ValueError:
            labels = np.empty(0)
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        raise ValueError(
            "labels have to be names of classes for each image, or a table of images x classes"
        )
    if class_names is None or len(class_names) != labels.shape[1]:
        given = "none" if class_names is None else str(len(class_names))
        raise ValueError(f"labels have {labels.shape[1]} columns, class_names {given}; name each")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError("labels must be 1 (present), 0 (absent) or -1 (unknown)")
    return _checked(class_names), labels.astype(np.int8)


def _are_names(row: Any) -> bool:
    return isinstance(row, list | tuple | set | frozenset) and all(
        isinstance(name, str) for name in row
    )


def _of_names(
    rows: Sequence[Any], class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], Int8[np.ndarray, "images classes"]]:
    sets = [{row} if isinstance(row, str) else set(row) for row in rows]
    every = sorted(set().union(*sets)) if sets else []
    names = _checked(every if class_names is None else class_names)
    column = {name: number for number, name in enumerate(names)}
    if strange := [name for name in every if name not in column]:
        raise ValueError(f"label {strange[0]!r} is none of the {len(names)} class names")
    marks = np.zeros((len(rows), len(names)), np.int8)
    for row, own in enumerate(sets):
        marks[row, [column[name] for name in own]] = 1
    return names, marks


def _checked(class_names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(name) for name in class_names)
    check_class_names(names)
    if alike := same_text(names):
        raise ValueError(f"{' and '.join(map(repr, alike[0]))} are one text to CLIP; join them")
    return names


def train(
    listing: Listing,
    backbone: Backbone,
    clip: ClipSettings,
    wanted: Wanted,
    *,
    cache: Path,
    device: str = "cpu",
    batch_size: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Trained:
    """Train a method on all images of a listing but those that are held out.

    Args:
        listing: Images and labels.
        backbone: Frozen CLIP, on the device.
        clip: How it was opened.
        wanted: What is trained.
        cache: Folder that keeps features.
        device: Where it is trained.
        batch_size: Images a forward pass of the backbone.
        threads: That read and decode images.
        progress: Show bars.

    Raises:
        ImageError: No image can be read.
        ValueError: The images do not suit the method.
        DivergenceError: The loss left the finite numbers.
    """
    names = tuple(listing.class_names)
    labels = torch.from_numpy(np.array(getattr(listing, "labels", np.empty((0, 0)))))
    if len(labels) != len(listing) or not len(names):
        raise ValueError(f"{listing.name} has no table of labels to train on")
    if "captions" in wanted.own.training_feeds():
        raise ValueError(f"{wanted.own.title} is trained on captions: python -m pipeline.train")
    made = features_of(
        listing, labels, backbone,
        cache=cache, kind=wanted.kind, device=device, batch_size=batch_size, threads=threads,
        progress=progress,
    )  # fmt: skip
    source: FeatureSource = made.source
    if wanted.own.sees_images():
        is_native = wanted.own.image_form == "native"
        source = ImageSource(
            listing, made.indices, made.source.labels,
            resolution=backbone.stride if is_native else backbone.resolution,
            form=wanted.own.image_form, threads=threads, features=made.source,
        )  # fmt: skip
    rows, held = hold_out(len(source.labels), wanted.val_fraction, seed=wanted.seed)
    task = replace(
        Task.of(backbone, [[name] for name in names]),
        backbone=backbone if _needs_backbone(wanted.own) else None,
        sigmoid=sigmoid_of(backbone),
    )
    method, history, epoch = _fitted(wanted, task, source, rows, held, device, progress=progress)
    calibration = _calibrated(method, source, held, wanted)
    own = wanted.own
    about = About(
        format=FORMAT,
        method=wanted.method,
        name=own.own_name(),
        settings=own,
        loop=wanted.loop if own.trained_by == "loop" else Loop(),
        feature_space=made.feature_space,
        formerly=made.formerly,
        backbone_name=backbone.name,
        embed_dim=backbone.embed_dim,
        class_names=list(names),
        seed=wanted.seed,
        epoch=epoch,
        features=made.fingerprint,
        history=history,
        commit=git_commit(),
        encoder=Encoder(
            backbone=clip.name,
            kind=wanted.kind,
            templates=[NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE],
            **_encoder_fields(clip, backbone),
        ),
        text_width=require(backbone, "token embeddings", for_=own.title).text_tower.width
        if own.needs_gradients
        else None,
        calibration=calibration,
    )
    return Trained(method.on("cpu").eval(), about)


def _encoder_fields(clip: ClipSettings, backbone: Backbone) -> dict[str, Any]:
    """How a frozen CLIP was opened, as a checkpoint keeps it."""
    fields = clip._asdict()
    del fields["name"]
    return {
        **fields,
        "resolution": backbone.resolution,
        "include_global_token": backbone.include_global_token,
    }


def _needs_backbone(own: MethodSettings) -> bool:
    return own.needs_gradients or own.sees_images() or bool(own.own_texts())


def _fitted(
    wanted: Wanted,
    task: Task,
    source: FeatureSource,
    rows: np.ndarray,
    held: np.ndarray,
    device: str,
    *,
    progress: bool,
) -> tuple[Method[Any], list[dict[str, float]], int]:
    """A trained method, what its epochs said, and which epoch its weights are of."""
    kind = find_method(wanted.method)
    check_source(len(task.class_names), source, rows)
    if wanted.own.trained_by == "itself":
        method = initial(kind, wanted.own, task, seed=wanted.seed).on(device)
        line = {"epoch": 1.0, **method.fit(source, rows, seed=wanted.seed)}
        if (source.labels[held] == 1).any():
            scores = scores_of(method.eval(), source, held)
            line["val_map"] = mean_average_precision(scores, source.labels[held])
        return method.eval(), [line], 1
    pack = Pack(kind, [wanted.own], wanted.loop, task, seeds=[wanted.seed], device=device)
    history: list[dict[str, float]] = []
    with tqdm(
        total=wanted.loop.epochs, unit="epoch", desc=f"train {wanted.method}", disable=not progress
    ) as bar:

        def on_epoch(reports: list[EpochReport]) -> None:
            line = reports[0].line()
            history.append(line)
            said = {"loss": f"{line['loss']:.4f}"}
            if "val_map" in line:
                said["held-out mAP"] = f"{100 * line['val_map']:.1f} %"
            bar.set_postfix(said)
            bar.update()

        fit(
            pack, source, rows,
            seed=wanted.seed, val_rows=held if len(held) else None, on_epoch=on_epoch,
        )  # fmt: skip
    return pack.method(), history, pack.best_epoch()


def _calibrated(
    method: Method[Any], source: FeatureSource, held: np.ndarray, wanted: Wanted
) -> Calibration | None:
    try:
        return calibrate_method(method, source, held, kind=wanted.calibration, rule=wanted.rule)
    except CalibrationError as error:
        warnings.warn(
            f"one threshold of 0.5 stands for all classes: {error}. Give more images, or a larger "
            "val_fraction",
            stacklevel=4,
        )
        return None
