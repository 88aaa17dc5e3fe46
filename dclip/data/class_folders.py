"""A folder per class, as ImageFolder reads it, with or without folders of splits above."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dclip.data.folder import CLASS_NAMES_FILE
from dclip.data.label_text import MARKS, parts_of, short
from dclip.data.listing import ImageListing
from dclip.data.trees import (
    ONE_SPLIT,
    Rest,
    Tree,
    has_image,
    in_split_order,
    list_folder,
    make_listing,
    names_below,
    settle_class_names,
    split_kind,
)
from dclip.words import counted

FORMAT = "class-folders"

# Folders of these names hold images or annotations of all classes.
_NO_CLASSES = frozenset(
    [
        *("images", "image", "imgs", "img", "photos", "pictures", "jpegimages", "thumbnails"),
        *("labels", "label", "annotations", "annotation", "masks", "mask", "data"),
    ]
)
_LOOKED_AT = 1000
_MAX_MISSES = 5000


def find_class_folders(folder: Path, *, is_sure: bool = False) -> Tree | None:
    """A tree with a folder per class, if that is what a folder is.

    Folders of images that lie in folders called train, val, test or the like are classes of these
    splits. Else folders of images are classes of the one split, ``train``. One folder is no tree.

    Args:
        folder: Of the tree.
        is_sure: Whether folders of images are classes whatever their number and names are.

    Raises:
        ValueError: If some folders of images lie deeper than others, so that classes cannot be
            told from splits.
        OSError: If a folder cannot be read.
    """
    tops, _ = list_folder(folder, folder, limit=100 * _LOOKED_AT)
    misses = 0

    def looks(place: Path) -> bool:
        nonlocal misses
        found = has_image(place, folder, limit=_LOOKED_AT)
        misses += not found
        if misses > _MAX_MISSES:
            raise ValueError(
                f"{folder} has more than {_MAX_MISSES:,} folders without images; which folder below"
                " has the data?"
            )
        return found

    def inside(top: Path) -> list[str]:
        below, _ = list_folder(top, folder, limit=_LOOKED_AT)
        return [name for name in below if looks(top / name)]

    flat = [top for top in tops if looks(folder / top)]
    classes = {top: inside(folder / top) for top in tops}
    splits = [top for top in tops if split_kind(top) and _are_classes(classes[top], is_sure)]
    inner = sorted(f"{split}/{name}" for split in splits for name in classes[split])
    if len(inner) > 1 or (inner and is_sure):
        evidence = f"{counted(len(inner), 'folder')} of images, such as {inner[0]}"
        return Tree(
            FORMAT,
            evidence,
            in_split_order(splits),
            lambda split: read_class_folders(folder, split, splits=splits),
            lambda: _sources(folder, splits),
        )
    deep = [top for top in tops if classes[top]]
    if deep and (is_sure or (flat and _are_classes(flat, is_sure))):
        raise ValueError(
            f"{folder / deep[0]} has images in folders, such as {classes[deep[0]][0]}, and is not"
            f" called train, val or test; {'move its images up' if flat else 'rename it'}, or write"
            " a table of labels"
        )
    if not flat or deep or not _are_classes(flat, is_sure):
        return None
    if not is_sure and (len(flat) < 2 or all(split_kind(name) for name in flat)):
        return None
    return Tree(
        FORMAT,
        f"{counted(len(flat), 'folder')} of images, such as {flat[0]}",
        (ONE_SPLIT,),
        lambda split: read_class_folders(folder, split, splits=()),
        lambda: _sources(folder, ()),
    )


def read_class_folders(folder: Path, split: str, *, splits: Sequence[str]) -> ImageListing:
    """A split of a tree with a folder per class.

    Each image has the class its folder is called, and no other. Classes are those of all splits,
    sorted, or those of ``class_names.txt`` in its order.

    Args:
        folder: Of the tree.
        split: One of ``splits``; any name where there are none.
        splits: Folders that hold the folders of classes; none: the tree itself does.

    Raises:
        ValueError: If a folder of a class has images in a folder below, a name is not UTF-8, or
            there is no image.
        OSError: If a folder cannot be read.
    """
    rest = Rest()
    tops = [folder / name for name in splits] or [folder]
    found = [name for top in tops for name in _folders_of_images(top, folder)]
    _refuse_joined(folder, found)
    class_names, notes = settle_class_names(folder, found)
    top = folder / split if splits else folder
    files: list[str] = []
    columns: list[int] = []
    folders, strays = list_folder(top, folder, rest)
    empty = 0
    for name in folders:
        below, images = list_folder(top / name, folder, rest)
        deeper = next((one for one in below if has_image(top / name / one, folder)), None)
        if deeper is not None and images:
            raise ValueError(
                f"{top / name} has images, and more of them in its folder {deeper!r}; is that a"
                " class? Move them up, or write a table of labels"
            )
        if not images:
            empty += 1
            continue
        files += names_below(top / name, folder, images)
        columns += [class_names.index(name)] * len(images)
    labels = np.zeros((len(files), len(class_names)), np.uint8)
    labels[np.arange(len(files)), columns] = 1
    told = [*notes, "the folder of an image is its one class; it counts as without the others"]
    if strays:
        stray = counted(len(strays), "image")
        told.append(f"{stray} in no folder of a class, such as {strays[0]}: passed over")
    if splits:
        told += _outside(folder, splits)
    if empty:
        told.append(f"{counted(empty, 'folder')} without images: passed over")
    return make_listing(folder, split, class_names, files, labels, [*told, *rest.notes()])


def _outside(folder: Path, splits: Sequence[str]) -> list[str]:
    """A note on images that are in no folder of a split, or in one without folders of classes."""
    tops, images = list_folder(folder, folder)
    for top in tops:
        if top not in splits:
            images += names_below(folder / top, folder, list_folder(folder / top, folder)[1])
    if not images:
        return []
    many = counted(len(images), "image")
    return [f"{many} in no folder of a class, such as {images[0]}: passed over"]


def _folders_of_images(folder: Path, top: Path) -> list[str]:
    """Names of the folders in a folder that have an image."""
    folders, _ = list_folder(folder, top)
    return [name for name in folders if has_image(folder / name, top)]


def _refuse_joined(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder whose name is a list of other folders' names, unless a file says otherwise.

    Raises:
        ValueError: There is one.
    """
    if (folder / CLASS_NAMES_FILE).is_file():
        return
    for name in names:
        joined = parts_of(name, (*MARKS, "+", "&"))
        if joined is not None and all(part in names for part in joined[1]):
            raise ValueError(
                f"folder {short(name)} of {folder} is called after the classes"
                f" {' and '.join(map(repr, joined[1][:3]))}: images of several classes need a table"
                f" of labels; if it is one class, list all class names in {CLASS_NAMES_FILE}"
            )


def _are_classes(names: Sequence[str], is_sure: bool) -> bool:
    return bool(names) and (is_sure or not all(name.lower() in _NO_CLASSES for name in names))


def _sources(folder: Path, splits: Sequence[str]) -> list[Path]:
    tops = [folder / name for name in splits] or [folder]
    below = [top / name for top in tops for name in list_folder(top, folder)[0]]
    names = folder / CLASS_NAMES_FILE
    return [folder, *tops, *below, *([names] if names.is_file() else [])]
