"""What the work of a stage is given: what is looked at, and by what.

Of this folder, the one module that loads neither torch nor Ray: stages make these plans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dclip.checkpoints.origin import About
from dclip.data.listing import Listing
from dclip.data.segmentation import IGNORE_INDEX, SegmentationListing
from dclip.exports.description import Format, What
from dclip.methods.registry import find_method
from dclip.methods.settings import MethodSettings
from dclip.store.paths import AnyPath
from pipeline.cluster.groups import Groups, read_arrays
from pipeline.features.backbone import BackboneInfo
from pipeline.records.origin import kind_trained_on
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError


@dataclass(frozen=True)
class SystemPlan:
    """One row of a comparison of what scores locations.

    Attributes:
        name: What it is called in reports and metrics.
        kind: Local features it looks at.
        checkpoint: File of its method; None for frozen CLIP.
        trained_kind: Local features the method was trained on.
        trained_classes: Classes it was trained on.
        finds_classes: Whether the method says which classes an image shows: it gives probabilities,
            or has a rule of its own.
        only_present: Whether only those compete.
        method: Settings of a method that is not trained and looks at images at their own size,
            whose row this is.
    """

    name: str
    kind: str
    checkpoint: Path | None = None
    trained_kind: str | None = None
    trained_classes: tuple[str, ...] = ()
    finds_classes: bool = False
    only_present: bool = False
    method: MethodSettings | None = None


def plan_system(
    name: str, kind: str, checkpoint: Path, about: About, backbone: BackboneInfo
) -> SystemPlan:
    """What a checkpoint makes of local features of a kind, with all classes competing.

    Raises:
        StageError: It is of another backbone, or of a method that does not score locations.
    """
    trained_kind = kind_trained_on(checkpoint, about, backbone)
    method = find_method(about.method)
    if not method.scores_locations:
        raise StageError(
            f"checkpoint {checkpoint}: {about.settings.title} does not score locations"
        )
    return SystemPlan(
        name,
        kind,
        checkpoint.absolute(),
        trained_kind,
        tuple(about.class_names),
        finds_classes=method.finds_classes(),
    )


@dataclass(frozen=True)
class Counts:
    """What was counted on some images, for each system.

    Attributes:
        confusion: Pixels by true and predicted class, summed over the images: a matrix, or, where
            that would be large, a row for each of its cells that is not 0: its number, and pixels.
        per_image: ``miou_paper`` and ``miou_paper_positive`` of every image.
    """

    confusion: dict[str, np.ndarray]
    per_image: dict[str, np.ndarray]


@dataclass(frozen=True)
class SegmentPlan(Groups):
    """What is segmented; the groups' files hold counts.

    Attributes:
        listing: Images and masks.
        scored: Which classes are scored by their texts.
        background: Position of background among the classes; None where it is none.
        view: How images go through the backbone.
        systems: What is compared.
    """

    listing: SegmentationListing
    scored: range
    background: int | None
    view: dict[str, int]
    systems: list[SystemPlan]

    @property
    def has_many_classes(self) -> bool:
        """Whether a matrix of all classes for each group and system would be large."""
        return self.listing.ignore_index != IGNORE_INDEX

    def counts(self, group: int) -> Counts | None:
        """The counts of a group; None if they are not there or cannot be used."""
        arrays = read_arrays(self.path(group)) or {}
        classes, images = len(self.listing.class_names), len(self.rows(group))
        counts = Counts({}, {})
        for system in self.systems:
            confusion = arrays.get(f"confusion/{system.name}")
            per_image = arrays.get(f"per_image/{system.name}")
            if confusion is None or per_image is None:
                return None
            shape = (len(confusion), 2) if self.has_many_classes else (classes, classes)
            if confusion.shape != shape or per_image.shape != (images, 2):
                return None
            counts.confusion[system.name] = confusion
            counts.per_image[system.name] = per_image
        return counts


@dataclass(frozen=True)
class SegmentsPlan(Groups):
    """What is scored by its segments; the groups' files hold scores.

    Attributes:
        listing: Images and label vectors.
        system: What segments.
    """

    listing: Listing
    system: SystemPlan

    def scores(self, group: int) -> dict[str, np.ndarray] | None:
        """The scores of a group; None if they are not there or not of its images."""
        arrays = read_arrays(self.path(group))
        shape = (len(self.rows(group)), len(self.listing.class_names))
        is_whole = arrays is not None and all(
            name in arrays and arrays[name].shape == shape
            for name in ("labels", "whole", "segments")
        )
        return arrays if is_whole else None


@dataclass(frozen=True)
class PredictPlan:
    """What is looked at, for what, and where the results go.

    Attributes:
        config: The settings, with the backbone that is taken.
        sources: Image files.
        passed_over: Of each folder, what was not taken for an image, in words.
        classes: Their names.
        trained_as: Of each class, the name it was trained by; None if it was not.
        checkpoint: File of the method; None for frozen CLIP.
        about: Its origin.
        kind: Local features that maps are made of.
        gives_probabilities: Whether the method tells how likely a class is there.
        clip_tells: Whether CLIP itself does, as it was trained by a sigmoid.
        locates: Whether it tells how likely a class is at a location.
        taken: What answers, in a line.
        folder: Of the results; the name is a hash of all that shapes them.
    """

    config: Config
    sources: Sequence[AnyPath]
    passed_over: Mapping[str, str]
    classes: tuple[str, ...]
    trained_as: tuple[str | None, ...]
    checkpoint: Path | None
    about: About | None
    kind: str
    gives_probabilities: bool
    clip_tells: bool
    locates: bool
    taken: str
    folder: Path

    @property
    def untrained(self) -> list[str]:
        """Classes that the method was not trained on; none without a checkpoint."""
        if self.checkpoint is None:
            return []
        pairs = zip(self.classes, self.trained_as, strict=True)
        return [name for name, trained in pairs if trained is None]


BY_METHOD, BY_CLIP = "projectors", "clip"
"""Who scores a class of a prediction, in files: a checkpoint, whatever its method, or CLIP."""


def stamp_of(source: AnyPath) -> list[int] | None:
    """What changes when a local file does; None where nothing can be said."""
    try:
        about = source.stat() if isinstance(source, Path) else None
    except OSError:
        return None
    return about and [about.st_size, about.st_mtime_ns]


class RetrievePlan(NamedTuple):
    """What is compared.

    Attributes:
        data: How reports call the captions.
        listing: Of the images.
        rows: Of the images that take part.
        texts: Captions of each of them, one or more.
        files: Checkpoints by what the report calls them.
        notes: How the captions were read.
        identity: Hash of all that numbers depend on.
    """

    data: str
    listing: Listing
    rows: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]
    files: Mapping[str, Path]
    notes: tuple[str, ...]
    identity: str

    @property
    def num_captions(self) -> int:
        """Over all images."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class ExportPlan:
    """What is exported, and where to.

    Attributes:
        config: The settings, with the backbone that is taken.
        format: Of the file.
        what: What goes in.
        checkpoint: File of the method; None for frozen CLIP.
        about: Its origin.
        weights: SHA-256 of the checkpoint.
        kind: Of the local features.
        feature_space: Hash of what gives them their meaning.
        classes: Names of the columns, spelt as in training.
        taken: What is exported, in a line.
        identity: Hash of all that the file depends on.
        folder: Of the file; the name ends in that hash.
    """

    config: Config
    format: Format
    what: What
    checkpoint: Path | None
    about: About | None
    weights: str | None
    kind: str
    feature_space: str
    classes: tuple[str, ...]
    taken: str
    identity: str
    folder: Path

    @property
    def file(self) -> Path:
        """The model."""
        return self.folder / f"model.{self.format}"

    @property
    def about_file(self) -> Path:
        """What the model says of itself."""
        return self.folder / "model.json"

    @property
    def example(self) -> Path:
        """A program that runs it."""
        return self.folder / "example.py"
