"""COCO's instance annotations as a multi-label data set."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from pycocotools.coco import COCO

from dclip.data.images import ImageError, read_image
from dclip.data.listing import Sample, check_key

_PREFIX = "instances_"


@dataclass(frozen=True, eq=False)
class CocoListing:
    """A split of a data set in COCO's format; images are read when asked for.

    Attributes:
        split: Such as ``"val2014"``.
        class_names: Category names, ascending by category id.
        image_dir: Folder of the images.
        keys: Image ids, zero-padded to twelve digits as in COCO's file names.
        file_names: Relative to ``image_dir``.
        labels: Label vectors of all samples; a crowd counts as an object.
    """

    split: str
    class_names: tuple[str, ...]
    image_dir: Path
    keys: tuple[str, ...] = field(repr=False)
    file_names: tuple[str, ...] = field(repr=False)
    labels: UInt8[np.ndarray, "images classes"] = field(repr=False)
    name: str = "coco"

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        """The image id."""
        return self.keys[index]

    def read(self, index: int) -> Sample:
        """The image and its label vector.

        Raises:
            ImageError: If the file is missing or cannot be decoded.
        """
        path = self.image_dir / self.file_names[index]
        if not path.is_file():
            raise ImageError(f"image {self.keys[index]} is listed but there is no file {path}")
        return Sample(read_image(path), self.labels[index])

    def identity(self) -> dict[str, str | int]:
        """Split, and a hash of class names, keys, file names and labels."""
        listed = json.dumps([self.class_names, self.keys, self.file_names]).encode()
        content = hashlib.sha256(listed + self.labels.tobytes()).hexdigest()
        return {"name": self.name, "split": self.split, "content": content}


def find_coco_split(root: Path, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split, by COCO's layout.

    The annotations are ``<root>/annotations/instances_<split>.json``, the images lie in
    ``<root>/<split>`` or ``<root>/images/<split>``.

    Raises:
        ValueError: If one of them is missing; the message lists the splits that are there.
    """
    annotation_file = root / "annotations" / f"{_PREFIX}{split}.json"
    if not annotation_file.is_file():
        found = sorted((root / "annotations").glob(f"{_PREFIX}*.json"))
        splits = ", ".join(repr(path.stem.removeprefix(_PREFIX)) for path in found)
        raise ValueError(
            f"no split {split!r} under {root}: there is no {annotation_file}; "
            + (f"splits there are {splits}" if splits else "nor annotations of any other split")
        )
    folders = (root / split, root / "images" / split)
    for folder in folders:
        if folder.is_dir():
            return annotation_file, folder
    raise ValueError(
        f"no images of split {split!r} under {root}: neither {folders[0]} nor {folders[1]} is there"
    )


def read_coco(
    annotation_file: Path,
    image_dir: Path,
    *,
    images: Literal["annotated", "all"] = "annotated",
) -> CocoListing:
    """The split an annotation file describes, its samples ascending by key.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder the ``file_name`` entries are relative to.
        images: ``"annotated"`` drops images without any object, as the published numbers do (82,081
            and 40,137 images of COCO-14); ``"all"`` keeps them, with no label set.

    Raises:
        ValueError: If a file or folder is missing, the JSON is malformed, an annotation refers to
            an image or category that is not listed, an image id or file name is not fit for use, or
            no image is left.
    """
    if not image_dir.is_dir():
        raise ValueError(f"no image folder {image_dir}")
    coco = _index(annotation_file)
    try:
        return _listing(coco, annotation_file, image_dir, keep_all=images == "all")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{annotation_file} is not in COCO's format: {type(error).__name__} {error}"
        ) from error


def _index(annotation_file: Path) -> COCO:
    """The annotations as pycocotools indexes them, without what it prints."""
    if not annotation_file.is_file():
        raise ValueError(f"no annotation file {annotation_file}")
    try:
        dataset = json.loads(annotation_file.read_bytes())
    except ValueError as error:  # of the JSON or of its encoding
        raise ValueError(f"{annotation_file} is not JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(dataset, dict) or not all(
        isinstance(dataset.get(key), list) for key in parts
    ):
        raise ValueError(f"{annotation_file} is not in COCO's format: it needs lists {parts}")
    coco = COCO()
    coco.dataset = dataset
    try:
        with contextlib.redirect_stdout(StringIO()):
            coco.createIndex()
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{annotation_file} is not in COCO's format: {type(error).__name__} {error}"
        ) from error
    return coco


def _listing(coco: COCO, annotation_file: Path, image_dir: Path, *, keep_all: bool) -> CocoListing:
    """Images and label vectors from pycocotools' index."""
    category_ids = sorted(coco.cats)
    class_names = tuple(str(coco.cats[category]["name"]) for category in category_ids)
    if not class_names or len(set(class_names)) < len(coco.dataset["categories"]):
        raise ValueError(f"{annotation_file} needs categories, each with an id and name of its own")
    strangers = sorted(map(str, coco.imgToAnns.keys() - coco.imgs.keys()))
    if strangers:
        raise ValueError(
            f"{annotation_file} has annotations of {len(strangers)} images it does not list, such"
            f" as image {strangers[0]}"
        )
    if len(coco.imgs) < len(coco.dataset["images"]):
        raise ValueError(f"{annotation_file} lists an image id twice")
    column = {category: index for index, category in enumerate(category_ids)}

    samples: dict[str, tuple[str, list[int]]] = {}
    for image_id, image in coco.imgs.items():
        positives = {annotation["category_id"] for annotation in coco.imgToAnns.get(image_id, [])}
        unknown = positives - column.keys()
        if unknown:
            raise ValueError(
                f"{annotation_file}: image {image_id} has an object of category {min(unknown)},"
                " which is not listed"
            )
        if positives or keep_all:
            key = check_key(f"{image_id:012d}" if isinstance(image_id, int) else str(image_id))
            if key in samples:
                raise ValueError(f"{annotation_file} lists image {key} twice")
            samples[key] = (_file_name(image, key), [column[category] for category in positives])
    if not samples:
        raise ValueError(
            f"{annotation_file} has no image with an object"
            + ("" if keep_all or not coco.imgs else "; images='all' keeps those without")
        )
    keys = tuple(sorted(samples))
    labels = np.zeros((len(keys), len(class_names)), np.uint8)
    for row, key in enumerate(keys):
        labels[row, samples[key][1]] = 1
    return CocoListing(
        split=annotation_file.stem.removeprefix(_PREFIX),
        class_names=class_names,
        image_dir=image_dir,
        keys=keys,
        file_names=tuple(samples[key][0] for key in keys),
        labels=labels,
    )


def _file_name(image: Mapping[str, Any], key: str) -> str:
    """The file of an image, relative to the image folder and inside of it."""
    name = image["file_name"]
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(
            f"image {key} has file name {name!r}, which is not inside the image folder"
        )
    return str(name)
