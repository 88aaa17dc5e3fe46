"""Which splits of a data set are looked at, and opening one, with masks where it has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from dclip.data.coco import coco_splits
from dclip.data.dataset import Dataset
from dclip.data.listing import Listing
from dclip.data.segmentation import SegmentationListing
from dclip.store.paths import AnyPath, has_folders
from dclip.words import told
from pipeline.features.listings import (
    CHECK,
    FOLDER,
    find_dataset,
    is_own,
    known_splits,
    open_listing,
    open_segmentation,
    path_of,
)
from pipeline.features.trees import folder_splits, no_labels
from pipeline.terminal.errors import StageError, UsageError

AnyListing: TypeAlias = Listing | SegmentationListing


def registered(name: str) -> Dataset | None:
    """The registered data set of that name; None for the user's own."""
    return None if is_own(name) else find_dataset(name)


def open_split(
    name: str, root: AnyPath | None, split: str, options: Mapping[str, str], cache: Path | None
) -> AnyListing:
    """Images and masks of a split, or images and label vectors where it has no masks."""
    entry = registered(name)
    if entry is not None and entry.task == "segmentation":
        return open_segmentation(name, root, split, options)
    return open_listing(name, root, split, options, cache=cache)


def default_splits(
    name: str, root: AnyPath | None, options: Mapping[str, str] | None = None
) -> list[str]:
    """Splits to look at when none is named.

    Raises:
        UsageError: The data set does not tell.
    """
    entry = registered(name)
    names: list[str] = []
    if entry is not None and entry.expected:
        names = usual_splits(entry)
    elif entry is not None and root is not None:
        names = coco_splits(root)
    elif name.startswith(FOLDER):
        folder = path_of(name.removeprefix(FOLDER))
        if has_folders(folder) and not folder.is_dir():
            raise UsageError(f"no folder {folder}; give one that holds images and tables of labels")
        names = folder_splits(folder, options)
        if not names and has_folders(folder):
            raise StageError(no_labels(folder))
    elif entry is None:
        names = known_splits(name, root, options)
    if not names:
        raise UsageError(f"which split of {name!r}? Name it with --split")
    return sorted(names, key=lambda split: "train" not in split.casefold())


def usual_splits(entry: Dataset) -> list[str]:
    """The splits to train and report on, where they are known."""
    pair = (entry.train_split, entry.test_split) if entry.expected else ()
    return [split for split in pair if split is not None]


def without_advice(error: Exception) -> str:
    """What an error says, without the advice to run this program."""
    return told(error).partition(f"; {CHECK}")[0]
