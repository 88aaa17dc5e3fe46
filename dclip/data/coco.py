"""COCO's instance annotations as a multi-label data set."""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO

from dclip.data.dataset import Dataset, read_class_names, settle
from dclip.data.listing import ImageListing, check_key
from dclip.paths import AnyPath, has_folders

_PREFIX = "instances_"


def find_coco_split(root: AnyPath, split: str) -> tuple[AnyPath, AnyPath]:
    """Annotation file and image folder of a split, by COCO's layout.

    The annotations are ``<root>/annotations/instances_<split>.json``, the images lie in
    ``<root>/<split>`` or ``<root>/images/<split>``. A web server does not tell which; the first is
    returned, and `find_images` looks for an image.

    Raises:
        ValueError: If one of them is missing; the message lists the splits that are there.
        OSError: If a remote store cannot be reached.
    """
    annotation_file = root / "annotations" / f"{_PREFIX}{split}.json"
    if not annotation_file.is_file():
        splits = ", ".join(map(repr, coco_splits(root)))
        seen = f"splits there are {splits}" if splits else "nor annotations of any other split"
        raise ValueError(
            f"no split {split!r} under {root}: there is no {annotation_file}"
            + (f"; {seen}" if has_folders(root) else "")
        )
    folders = _image_folders(root, split)
    for folder in folders:
        if not has_folders(root) or folder.is_dir():
            return annotation_file, folder
    raise ValueError(
        f"no images of split {split!r} under {root}: neither {folders[0]} nor {folders[1]} is there"
    )


def coco_splits(root: AnyPath) -> list[str]:
    """Splits of which there are annotations, by COCO's layout; none are found on a web server."""
    if not has_folders(root):
        return []
    found = (root / "annotations").glob(f"{_PREFIX}*.json")
    return sorted(path.stem.removeprefix(_PREFIX) for path in found)


def find_images(listing: ImageListing, folders: Sequence[AnyPath]) -> ImageListing:
    """The listing with the first of some folders that has its first image.

    Raises:
        ValueError: If none has.
        OSError: If a remote store cannot be reached.
    """
    for folder in folders:
        if (folder / listing.file_names[0]).is_file():
            return replace(listing, image_dir=folder)
    places = " nor ".join(str(folder / listing.file_names[0]) for folder in folders)
    raise ValueError(f"no images of split {listing.split!r}: there is no {places}")


def read_coco(
    annotation_file: AnyPath,
    image_dir: AnyPath,
    *,
    images: Literal["annotated", "all"] = "annotated",
) -> ImageListing:
    """The split an annotation file describes, its samples ascending by key.

    Class names ascend by category id; keys are image ids, zero-padded to twelve digits as in COCO's
    file names; a crowd counts as an object.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder the ``file_name`` entries are relative to.
        images: ``"annotated"`` drops images without any object, as the published numbers do (82,081
            and 40,137 images of COCO-14); ``"all"`` keeps them, with no label set.

    Raises:
        ValueError: If a file or folder is missing, the JSON is malformed, an annotation refers to
            an image or category that is not listed, an image id or file name is not fit for use, or
            no image is left.
        OSError: If a file cannot be read, or a remote store not be reached.
    """
    if has_folders(image_dir) and not image_dir.is_dir():
        raise ValueError(f"no image folder {image_dir}")
    coco = index_coco(annotation_file)
    try:
        return _listing(coco, annotation_file, image_dir, keep_all=images == "all")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{annotation_file} is not in COCO's format: {type(error).__name__} {error}"
        ) from error


def index_coco(annotation_file: AnyPath, *, outlines: bool = False) -> COCO:
    """The annotations as pycocotools indexes them, without what it prints.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.
        outlines: Whether the outlines of objects are kept; they are most of such a file.

    Raises:
        ValueError: If the file is missing, no JSON, or not in COCO's format.
    """
    if not annotation_file.is_file():
        raise ValueError(f"no annotation file {annotation_file}")
    try:
        text = annotation_file.read_bytes()
        dataset = json.loads(text, object_hook=None if outlines else _without_outline)
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
    strangers = sorted(map(str, coco.imgToAnns.keys() - coco.imgs.keys()))
    if strangers:
        raise ValueError(
            f"{annotation_file} has annotations of {len(strangers)} images it does not list, such"
            f" as image {strangers[0]}"
        )
    if len(coco.imgs) < len(coco.dataset["images"]):
        raise ValueError(f"{annotation_file} lists an image id twice")
    return coco


def _without_outline(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object without what only masks need; called as each one is read."""
    value.pop("segmentation", None)
    return value


def _listing(
    coco: COCO, annotation_file: AnyPath, image_dir: AnyPath, *, keep_all: bool
) -> ImageListing:
    """Images and label vectors from pycocotools' index."""
    category_ids = sorted(coco.cats)
    class_names = tuple(str(coco.cats[category]["name"]) for category in category_ids)
    if not class_names or len(set(class_names)) < len(coco.dataset["categories"]):
        raise ValueError(f"{annotation_file} needs categories, each with an id and name of its own")
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
            samples[key] = (
                inner_file_name(image, key),
                [column[category] for category in positives],
            )
    if not samples:
        raise ValueError(
            f"{annotation_file} has no image with an object"
            + ("" if keep_all or not coco.imgs else "; images='all' keeps those without")
        )
    keys = tuple(sorted(samples))
    labels = np.zeros((len(keys), len(class_names)), np.uint8)
    for row, key in enumerate(keys):
        labels[row, samples[key][1]] = 1
    return ImageListing(
        name="coco",
        split=annotation_file.stem.removeprefix(_PREFIX),
        class_names=class_names,
        image_dir=image_dir,
        keys=keys,
        file_names=tuple(samples[key][0] for key in keys),
        labels=labels,
    )


def inner_file_name(image: Mapping[str, Any], key: str) -> str:
    """The file of an image, relative to the image folder and inside of it.

    Raises:
        ValueError: If the name leads out of the folder.
    """
    name = image["file_name"]
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(
            f"image {key} has file name {name!r}, which is not inside the image folder"
        )
    return str(name)


# ---------------------------------------------------------------------------------------------
# What the registry knows
# ---------------------------------------------------------------------------------------------

_OPTIONS = {"images": ("annotated", "all")}
_LAYOUT = (
    ("annotations/instances_{split}.json", "objects with category, box and outline"),
    ("{split}/*.jpg", "images; images/{split}/*.jpg will do as well"),
)


def open_coco_format(root: AnyPath, split: str, options: Mapping[str, str]) -> ImageListing:
    """A split of any data set in COCO's format and layout; class names are those of the file.

    Raises:
        ValueError: If a file or folder is missing or malformed, or an option is not known.
    """
    return _open(root, split, options, name="coco", class_names=())


def open_coco14(root: AnyPath, split: str, options: Mapping[str, str]) -> ImageListing:
    """A split of COCO 2014.

    Raises:
        ValueError: If a file or folder is missing or malformed, the categories are not COCO's, or
            an option is not known.
    """
    return _open(root, split, options, name="coco14", class_names=COCO14.class_names)


def open_coco17(root: AnyPath, split: str, options: Mapping[str, str]) -> ImageListing:
    """A split of COCO 2017.

    Raises:
        ValueError: If a file or folder is missing or malformed, the categories are not COCO's, or
            an option is not known.
    """
    return _open(root, split, options, name="coco17", class_names=COCO17.class_names)


def _open(
    root: AnyPath,
    split: str,
    options: Mapping[str, str],
    *,
    name: str,
    class_names: tuple[str, ...],
) -> ImageListing:
    """Find, read, and compare the categories with those that are known."""
    chosen = settle(_OPTIONS, options)
    annotation_file, image_dir = find_coco_split(root, split)
    images: Literal["annotated", "all"] = "all" if chosen["images"] == "all" else "annotated"
    listing = read_coco(annotation_file, image_dir, images=images)
    check_categories(listing.class_names, class_names, annotation_file)
    if not has_folders(root):
        listing = find_images(listing, _image_folders(root, split))
    return replace(listing, name=name, options=chosen)


def _image_folders(root: AnyPath, split: str) -> tuple[AnyPath, ...]:
    """Where the images of a split may be."""
    return (root / split, root / "images" / split)


def check_categories(found: tuple[str, ...], known: tuple[str, ...], source: AnyPath) -> None:
    """Compare the categories of a file, in order, with published ones, if those are given.

    Raises:
        ValueError: If they differ; the message has the first difference.
    """
    if known and found != known:
        pairs = itertools.zip_longest(found, known)
        column, (here, there) = next(
            (column, pair) for column, pair in enumerate(pairs) if pair[0] != pair[1]
        )
        raise ValueError(
            f"{source} is not COCO: of {len(found)} categories, number {column} by id is {here!r},"
            f" not {there!r} of {len(known)}; --dataset coco takes any categories"
        )


_PHRASINGS = read_class_names("coco80")
_NAMES = tuple(names[0] for names in _PHRASINGS)

COCO_FORMAT = Dataset(
    name="coco",
    title="any data set in COCO's format",
    task="multilabel",
    train_split=None,
    test_split="val",
    expected={},
    class_names=(),
    phrasings=(),
    options=_OPTIONS,
    homepage="https://cocodataset.org/#format-data",
    layout=_LAYOUT,
    open=open_coco_format,
    takes_urls=True,
    notes="Classes are the categories of the annotation file, ascending by id.",
)

COCO14 = Dataset(
    name="coco14",
    title="MS-COCO 2014",
    task="multilabel",
    train_split="train2014",
    test_split="val2014",
    expected={"train2014": 82_081, "val2014": 40_137},
    expected_with={"images=all": {"train2014": 82_783, "val2014": 40_504}},
    class_names=_NAMES,
    phrasings=_PHRASINGS,
    options=_OPTIONS,
    homepage="https://cocodataset.org/#download",
    layout=_LAYOUT,
    open=open_coco14,
    takes_urls=True,
    notes="Images without an object are left out, as in the published numbers; images=all keeps"
    " them. A crowd counts as an object. Columns ascend by category id.",
)

COCO17 = replace(
    COCO14,
    name="coco17",
    title="MS-COCO 2017",
    train_split="train2017",
    test_split="val2017",
    expected={"train2017": 117_266, "val2017": 4_952},
    expected_with={"images=all": {"train2017": 118_287, "val2017": 5_000}},
    open=open_coco17,
)
