"""COCO's instance annotations as a multi-label data set."""

import itertools
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from dclip.data.coco_files import find_image_files
from dclip.data.dataset import Dataset, read_class_names, settle
from dclip.data.listing import ImageListing, fit_key
from dclip.store.paths import AnyPath, has_folders
from dclip.words import counted

_PREFIX = "instances_"
_BESIDE = "_annotations.coco.json"
_SHOWN = 60
_PARTS = ("images", "annotations", "categories")
_NUMBER = re.compile(r"([0-9]{1,18})(\.0+)?")

# LVIS's lists of an image: categories verified to be absent, and those of whose objects some only
# are outlined.
_NEGATIVE, _OPEN = "neg_category_ids", "not_exhaustive_category_ids"


def annotation_file_of(root: AnyPath, split: str) -> AnyPath:
    """The annotation file of a split, by COCO's layout or by Roboflow's.

    That is ``<root>/annotations/instances_<split>.json``, which is returned also where neither is
    there, or ``<root>/<split>/_annotations.coco.json``.

    Raises:
        OSError: If a remote store cannot be reached.
    """
    usual, beside = root / "annotations" / f"{_PREFIX}{split}.json", root / split / _BESIDE
    return beside if not usual.is_file() and beside.is_file() else usual


def find_coco_split(root: AnyPath, split: str) -> tuple[AnyPath, AnyPath]:
    """Annotation file and image folder of a split.

    By COCO's layout the annotations are ``<root>/annotations/instances_<split>.json``, the images
    lie in ``<root>/<split>``, in ``<root>/images/<split>`` or, where neither is there, all in
    ``<root>/images``. By Roboflow's both are in ``<root>/<split>``. A web server does not tell
    which folders there are; the first is returned.

    Raises:
        ValueError: If one of them is missing; the message lists the splits that are there.
        OSError: If a remote store cannot be reached.
    """
    annotation_file = annotation_file_of(root, split)
    if not annotation_file.is_file():
        splits = ", ".join(map(repr, coco_splits(root)))
        seen = f"splits there are {splits}" if splits else "nor annotations of any other split"
        raise ValueError(
            f"no split {split!r} under {root}: there is no {annotation_file}"
            + (f"; {seen}" if has_folders(root) else "")
        )
    folders = (root / split, root / "images" / split)
    for folder in folders:
        if not has_folders(root) or folder.is_dir():
            return annotation_file, folder
    flat = root / "images"
    if flat.is_dir() and any(path.is_file() for path in flat.iterdir()):
        return annotation_file, flat
    raise ValueError(
        f"no images of split {split!r} under {root}: neither {folders[0]} nor {folders[1]} is there"
    )


def coco_splits(root: AnyPath) -> list[str]:
    """Splits of which there are annotations, by both layouts; none are found on a web server."""
    if not has_folders(root):
        return []
    usual = {
        path.stem.removeprefix(_PREFIX)
        for path in (root / "annotations").glob("*.json")
        if path.stem.startswith(_PREFIX)
    }
    return sorted(usual | {path.parent.name for path in root.glob(f"*/{_BESIDE}")})


def read_coco(
    annotation_file: AnyPath,
    image_dir: AnyPath,
    *,
    images: Literal["annotated", "all"] = "annotated",
    also: Sequence[AnyPath] = (),
) -> ImageListing:
    """The split an annotation file describes, its samples ascending by key.

    Class names ascend by category id; a root of categories as Roboflow exports it (id 0,
    supercategory "none", nothing annotated) is none. Keys are image ids, zero-padded to twelve
    digits as in COCO's file names; of an id that is no fit key, such as a file name, a hash is
    part. Ids are compared as numbers where they are some. A crowd counts as an object.

    Where an image has LVIS's ``neg_category_ids`` or ``not_exhaustive_category_ids``, labels are
    partial in all of them: 1 for a category with an object, 0 for one that is verified to be
    absent, else -1. An object counts more than a list that has its category as absent; a category
    without an object that is in both lists is -1.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder the ``file_name`` entries are relative to.
        images: ``"annotated"`` drops images without any object, as the published numbers do (82,081
            and 40,137 images of COCO-14); ``"all"`` keeps them, with no label set.
        also: Further folders to look for images in, one of them above all others; those that are
            not there are passed over. `dclip.data.coco_files` says how a file is found.

    Raises:
        ValueError: If a file or folder is missing, the JSON is malformed, an annotation refers to
            an image or category that is not listed, a file name leads out of the folders or to
            none, or no image is left.
        OSError: If a file cannot be read, or a remote store not be reached.
    """
    if has_folders(image_dir) and not image_dir.is_dir():
        raise ValueError(f"no image folder {image_dir}")
    found = read_annotations(annotation_file)
    is_empty = [not image.objects for image in found.images]
    kept = [image for image in found.images if image.objects or images == "all"]
    if not kept:
        raise ValueError(
            f"{annotation_file} has no image with an object"
            + ("" if images == "all" or not found.images else "; images='all' keeps those without")
        )
    notes = list(found.notes)
    if any(is_empty):
        one = found.images[is_empty.index(True)].key
        notes.append(
            f"no object in {sum(is_empty):,} of {counted(len(is_empty), 'image')}, such as {one}: "
            + (
                "kept (images=annotated leaves such images out)"
                if images == "all"
                else "left out (images=all keeps such images)"
            )
        )
    labels, partial = _labels(kept, found.class_names)
    with told_of(annotation_file):
        names = {image.key: file_name_of(image) for image in kept}
    split = annotation_file.stem.removeprefix(_PREFIX)
    places = find_image_files(
        names,
        [image_dir, *(folder for folder in also if not has_folders(folder) or folder.is_dir())],
        split=split,
        source=annotation_file,
    )
    partial += _told_twice(kept, places.file_names, labels, annotation_file)
    return ImageListing(
        name="coco",
        split=split,
        class_names=found.class_names,
        image_dir=places.folder,
        keys=tuple(image.key for image in kept),
        file_names=places.file_names,
        labels=labels,
        notes=(*notes, *partial, *places.notes),
    )


def _told_twice(
    images: Sequence["AnnotatedImage"],
    file_names: Sequence[str],
    labels: np.ndarray,
    annotation_file: AnyPath,
) -> list[str]:
    """A note on files that several images are; each would lack what the others have.

    Raises:
        ValueError: If the labels of two such images differ.
    """
    first: dict[str, int] = {}
    again = []
    for row, name in enumerate(file_names):
        other = first.setdefault(posixpath.normpath(name), row)
        if other == row:
            continue
        again.append(f"{images[other].key} and {images[row].key} ({name[:_SHOWN]})")
        if not np.array_equal(labels[other], labels[row]):
            raise ValueError(
                f"{annotation_file}: images {images[other].key} and {images[row].key} are one file,"
                f" {name[:_SHOWN]!r}, and have other objects; give all of its annotations one"
                " image_id"
            )
    if not again:
        return []
    return [f"{counted(len(again), 'image')} listed again under another id, such as {again[0]}"]


def _labels(
    images: Sequence["AnnotatedImage"], class_names: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Label vectors of some images, and what to say of them where they are partial."""
    objects = [(row, item.column) for row, image in enumerate(images) for item in image.objects]
    present = np.zeros((len(images), len(class_names)), np.uint8)
    if objects:
        present[tuple(np.array(objects).T)] = 1
    is_listed = [image.absent is not None or image.open is not None for image in images]
    if not any(is_listed):
        return present, []
    absent, left_open = np.zeros_like(present), np.zeros_like(present)
    for row, image in enumerate(images):
        absent[row, image.absent or []] = 1
        left_open[row, image.open or []] = 1
    labels = np.full(present.shape, -1, np.int8)
    labels[(absent > left_open)] = 0
    labels[present > 0] = 1
    notes = [
        f"labels are partial: a class is 1 with an object, 0 where {_NEGATIVE} has it, else unknown"
    ]
    if not (labels == 0).any():
        notes.append(f"no class is known to be absent: {_NEGATIVE} has none that has no object")
    for where, what in (
        (absent & present, f"with an object though in {_NEGATIVE}, taken for 1"),
        (
            absent & left_open & (1 - present),
            f"in both {_NEGATIVE} and {_OPEN}, taken for unknown",
        ),
    ):
        if where.any():
            row, column = np.argwhere(where)[0].tolist()
            one = f"{class_names[column]!r} of image {images[row].key}"
            notes.append(f"{counted(int(where.sum()), 'label')} {what}, such as {one}")
    if not all(is_listed):
        one = images[is_listed.index(False)].key
        notes.append(
            f"neither {_NEGATIVE} nor {_OPEN} in {is_listed.count(False):,} of"
            f" {counted(len(images), 'image')}, such as {one}: what has no object there is unknown"
        )
    return labels, notes


# ---------------------------------------------------------------------------------------------
# The annotation file
# ---------------------------------------------------------------------------------------------


class AnnotatedObject(NamedTuple):
    """One annotation.

    Attributes:
        column: Position of its category among the class names.
        number: Its position in the file, counted from 1.
        entry: What the file has of it.
    """

    column: int
    number: int
    entry: Mapping[str, Any]


class AnnotatedImage(NamedTuple):
    """One image of an annotation file.

    Attributes:
        key: Unique in the file.
        number: Its position in the file, counted from 1.
        entry: What the file has of it.
        objects: Its annotations in the order of the file.
        absent: Columns LVIS's ``neg_category_ids`` has; None without such a list.
        open: Columns LVIS's ``not_exhaustive_category_ids`` has; None without such a list.
    """

    key: str
    number: int
    entry: Mapping[str, Any]
    objects: list[AnnotatedObject]
    absent: list[int] | None
    open: list[int] | None


class Annotations(NamedTuple):
    """An annotation file whose references have been followed.

    Attributes:
        class_names: Ascending by category id.
        images: Ascending by key.
        notes: How it was read; see `dclip.data.listing.Keyed`.
    """

    class_names: tuple[str, ...]
    images: list[AnnotatedImage]
    notes: tuple[str, ...]


def read_annotations(annotation_file: AnyPath, *, outlines: bool = False) -> Annotations:
    """Images, categories, and the annotations of each image.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.
        outlines: Whether the outlines of objects are kept; they are most of such a file.

    Raises:
        ValueError: If the file is missing, no JSON, or not in COCO's format; the message names the
            entry and what it lacks.
        OSError: If the file cannot be read, or a remote store not be reached.
    """
    document = _read_json(annotation_file, outlines=outlines)
    with told_of(annotation_file):
        return _follow(document)


class FormatError(Exception):
    """What an annotation file lacks, in words; `told_of` says of which file."""


@contextmanager
def told_of(annotation_file: AnyPath) -> Iterator[None]:
    """Make errors about the content of a file name it.

    Raises:
        ValueError: In place of a `FormatError`.
    """
    try:
        yield
    except FormatError as error:
        raise ValueError(f"{annotation_file}: {error}") from None


def _read_json(annotation_file: AnyPath, *, outlines: bool) -> dict[str, list[Any]]:
    """The document, which has the three lists."""
    if not annotation_file.is_file():
        raise ValueError(f"no annotation file {annotation_file}")
    try:
        text = annotation_file.read_bytes()
        document = json.loads(text, object_hook=None if outlines else _without_outline)
    except (ValueError, RecursionError) as error:  # of the JSON or of its encoding
        raise ValueError(f"{annotation_file} is not JSON: {error}") from error
    lists = document if isinstance(document, dict) else {}
    missing = [part for part in _PARTS if not isinstance(lists.get(part), list)]
    if missing:
        raise ValueError(
            f"{annotation_file} is not in COCO's format: it needs lists {', '.join(_PARTS)}, and"
            f" has no list {missing[0]!r}"
        )
    return {part: lists[part] for part in _PARTS}


def _without_outline(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object without what only masks need; called as each one is read."""
    value.pop("segmentation", None)
    return value


def _follow(document: Mapping[str, list[Any]]) -> Annotations:
    """Bring images, annotations and categories together by their ids."""
    categories = _Ids("categories", document["categories"])
    pictures = _Ids("images", document["images"])
    names = _names(document["categories"])
    order = sorted(range(len(names)), key=lambda position: _rank(categories.ids, position))
    column = {position: index for index, position in enumerate(order)}
    objects: list[list[AnnotatedObject]] = [[] for _ in document["images"]]
    for number, entry in enumerate(document["annotations"], start=1):
        try:  # the usual way, since there are a million of them
            image, category = entry["image_id"], entry["category_id"]
            position, kind = pictures.exact[image], categories.exact[category]
            is_odd = type(image) is bool or type(category) is bool
        except (KeyError, TypeError):
            is_odd = True
        if is_odd:
            position, kind = _references(document["annotations"], number, pictures, categories)
        objects[position].append(AnnotatedObject(column[kind], number, entry))
    used = {item.column for items in objects for item in items}
    notes: tuple[str, ...] = ()
    root = _root(document["categories"], categories.ids, names)
    if root is not None and column[root] not in used:
        order.remove(root)
        kept = {column[position]: index for index, position in enumerate(order)}
        objects = [[item._replace(column=kept[item.column]) for item in row] for row in objects]
        column = {position: index for index, position in enumerate(order)}
        notes = (
            f"category {shown(names[root])} (id 0) is what the exporter puts above all others, and"
            " nothing is annotated with it: it is no class",
        )
    _refuse_same(order, names, categories.ids)
    images: dict[str, AnnotatedImage] = {}
    for position, entry in enumerate(document["images"]):
        own = pictures.ids[position]
        key = fit_key(f"{own:012d}" if isinstance(own, int) else own)
        if key in images:
            raise FormatError(f"lists image {key} twice")
        lists = [
            _listed(entry, name, position + 1, categories, column) for name in (_NEGATIVE, _OPEN)
        ]
        images[key] = AnnotatedImage(key, position + 1, entry, objects[position], *lists)
    for part, ids in (("images", pictures), ("categories", categories)):
        if ids.respelt:
            asked, own = map(shown, next(iter(ids.respelt.items())))
            notes += (
                f"{counted(len(ids.respelt), 'id')} of {part} spelt in two ways, such as {asked}"
                f" and {own}: ids are compared as numbers",
            )
    class_names = tuple(names[position] for position in order)
    return Annotations(class_names, [images[key] for key in sorted(images)], notes)


class _Ids:
    """Ids of images or categories, found whether they are written as numbers or as text.

    Attributes:
        ids: Of each entry, numbers as such.
        exact: Position of the entry with each of them.
        respelt: Ids that were asked for in another spelling, and the ones they were taken for.
    """

    def __init__(self, part: str, entries: Sequence[object]) -> None:
        self.ids: list[int | str] = []
        self.respelt: dict[int | str, int | str] = {}
        self.exact: dict[int | str, int] = {}
        self._alike: dict[int, list[int]] = {}
        for position, entry in enumerate(entries):
            value = _value(entry, "id", part, position + 1)
            own = _id_of(value)
            if own is None:
                where = entry_name(part, position + 1, entry)
                raise FormatError(f"{where} needs an id that is a whole number or a text")
            if own in self.exact:
                one = {"images": "an image", "categories": "a category"}[part]
                raise FormatError(f"lists {one} id twice: {shown(value)}")
            self.exact[own] = position
            self.ids.append(own)
            number = _number_of(own)
            if number is not None:
                self._alike.setdefault(number, []).append(position)

    def find(self, value: object) -> int | None:
        """Position of the entry with this id; None if none has it, or several that look like it."""
        own = _id_of(value)
        if own is None or own in self.exact:
            return None if own is None else self.exact[own]
        number = _number_of(own)
        alike = [] if number is None else self._alike.get(number, [])
        if len(alike) != 1:
            return None
        self.respelt[own] = self.ids[alike[0]]
        return alike[0]


def _id_of(value: object) -> int | str | None:
    """An id as it is compared: 1 and 1.0 are one; None if it is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and _is_text(value):
        return value
    return value if isinstance(value, int) else None


def _number_of(own: int | str) -> int | None:
    """The number an id stands for; None if it is another text."""
    if isinstance(own, int):
        return own
    found = _NUMBER.fullmatch(own)
    return int(found[1]) if found else None


def _references(
    annotations: Sequence[Any], number: int, pictures: _Ids, categories: _Ids
) -> tuple[int, int]:
    """Positions of the image and category of an annotation that spells them in another way.

    Raises:
        FormatError: If it has none, or none that is listed.
    """
    entry = annotations[number - 1]
    position = pictures.find(_value(entry, "image_id", "annotations", number))
    if position is None:
        raise _stranger(annotations, pictures)
    kind = categories.find(_value(entry, "category_id", "annotations", number))
    if kind is None:
        raise FormatError(
            f"{entry_name('annotations', number, entry)}: image {shown(entry['image_id'])} has"
            f" an object of category {shown(entry['category_id'])}, which is not listed"
        )
    return position, kind


def _listed(
    entry: Mapping[str, Any],
    name: str,
    number: int,
    categories: _Ids,
    column: Mapping[int, int],
) -> list[int] | None:
    """Columns of the categories in one of LVIS's lists of an image; None if it has no such list."""
    values = entry.get(name)
    if values is None:
        return None
    where = entry_name("images", number, entry)
    if not isinstance(values, list):
        raise FormatError(f"{where} has {name} {shown(values)}, which is no list of category ids")
    columns = []
    for value in values:
        position = categories.find(value)
        if position is None:
            raise FormatError(f"{where} has category {shown(value)} in {name}, which is not listed")
        if position in column:
            columns.append(column[position])
    return columns


def entry_name(part: str, number: int, entry: object) -> str:
    """How messages call an entry of a list of the file."""
    own = entry.get("id") if isinstance(entry, Mapping) else None
    return f"entry {number} of {part}" + ("" if own is None else f" (id {shown(own)})")


def shown(value: object) -> str:
    """A value of the file for messages, not longer than a line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _value(entry: object, key: str, part: str, number: int) -> Any:
    """What an entry has under a key."""
    if not isinstance(entry, dict):
        raise FormatError(f"{entry_name(part, number, entry)} is {shown(entry)}, not an object")
    value = entry.get(key)
    if value is None:
        kind = "; panoptic annotations are of another kind" if "segments_info" in entry else ""
        raise FormatError(f"{entry_name(part, number, entry)} has no {key}{kind}")
    return value


def _stranger(annotations: Sequence[Any], pictures: _Ids) -> FormatError:
    """The error for annotations of images that are not listed."""
    lost = dict.fromkeys(
        shown(entry["image_id"])
        for number, entry in enumerate(annotations, start=1)
        if pictures.find(_value(entry, "image_id", "annotations", number)) is None
    )
    return FormatError(
        f"has annotations of {counted(len(lost), 'image')} it does not list, such as image"
        f" {min(lost)}"
    )


def _names(entries: Sequence[Any]) -> list[str]:
    """The name of each category."""
    names = []
    for number, entry in enumerate(entries, start=1):
        name = _value(entry, "name", "categories", number)
        is_number = isinstance(name, int | float) and not isinstance(name, bool)
        if not is_number and not (_is_text(name) and name.strip()):
            where = entry_name("categories", number, entry)
            raise FormatError(f"{where} needs a name that is a text, not {shown(name)}")
        names.append(str(name))
    return names


def _refuse_same(order: Sequence[int], names: Sequence[str], ids: Sequence[int | str]) -> None:
    """Refuse a file without a class, or with two of one name."""
    if not order:
        raise FormatError("needs categories, each with an id and a name")
    seen: dict[str, int] = {}
    for position in order:
        other = seen.setdefault(names[position], position)
        if other != position:
            raise FormatError(
                f"categories {shown(ids[other])} and {shown(ids[position])} are both called"
                f" {shown(names[position])}; give each a name of its own"
            )


def _rank(ids: Sequence[int | str], position: int) -> tuple[bool, int, str]:
    """Numbers ascend by value; texts as texts, where all ids are texts also those of digits."""
    own = ids[position]
    number = None if all(isinstance(one, str) for one in ids) else _number_of(own)
    return number is None, number or 0, str(own)


def _root(entries: Sequence[Any], ids: Sequence[int | str], names: Sequence[str]) -> int | None:
    """Position of the category above the others: id 0, supercategory "none", and it is theirs."""
    for root, (entry, own) in enumerate(zip(entries, ids, strict=True)):
        if _number_of(own) == 0 and str(entry.get("supercategory", "")).lower() == "none":
            for position, other in enumerate(entries):
                names_it = names[root] in (names[position], other.get("supercategory"))
                if position != root and names_it:
                    return root
    return None


def file_name_of(image: AnnotatedImage) -> str:
    """The file name of an image, or the URL that stands for it in LVIS.

    Raises:
        FormatError: If it has neither.
    """
    name = image.entry.get("file_name")
    if name is None or name == "":
        url = image.entry.get("coco_url")
        name = url if _is_text(url) else name
    where = entry_name("images", image.number, image.entry)
    if name is None:
        raise FormatError(f"{where} has no file_name, nor a coco_url")
    if name != "" and not _is_text(name):
        raise FormatError(f"{where} has file_name {shown(name)}, which is no text")
    return str(name)


def _is_text(value: object) -> bool:
    """Whether it is a text that can be written: JSON may hold halves of characters."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


# ---------------------------------------------------------------------------------------------
# What the registry knows
# ---------------------------------------------------------------------------------------------

_OPTIONS = {"images": ("annotated", "all")}

OWN_OPTIONS: Mapping[str, tuple[str, ...]] = {"images": ("all", "annotated")}
"""Of annotation files of the user's own, where a photograph without an object is one as well."""

ANNOTATIONS = "annotations/instances_{split}.json"
"""Place of the annotation file below the root."""

_LAYOUT = (
    (ANNOTATIONS, "objects with category, box and outline"),
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
    is_own = not class_names
    chosen = settle(OWN_OPTIONS if is_own else _OPTIONS, options)
    annotation_file, image_dir = find_coco_split(root, split)
    images: Literal["annotated", "all"] = "all" if chosen["images"] == "all" else "annotated"
    folders = (root / split, root / "images" / split, image_dir / "images", root / "images", root)
    also = [folder for folder in folders if folder != image_dir]
    listing = read_coco(annotation_file, image_dir, images=images, also=also)
    check_categories(listing.class_names, class_names, annotation_file)
    listing = replace(listing, name=name, split=split, options=chosen)
    return with_own_options(listing) if is_own else listing


def with_own_options(listing: ImageListing) -> ImageListing:
    """A listing of the user's own that says which images it has, whichever were asked for.

    So it is the same one, and features of it are, whether images without an object are dropped or
    kept, where there are none.
    """
    images = "annotated" if (listing.labels == 1).any(axis=1).all() else "all"
    return replace(listing, options={**listing.options, "images": images})


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
    options=OWN_OPTIONS,
    homepage="https://cocodataset.org/#format-data",
    layout=_LAYOUT,
    open=open_coco_format,
    takes_urls=True,
    notes="Classes are the categories of the annotation file, ascending by id. Images without an"
    " object are kept; images=annotated leaves them out.",
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
