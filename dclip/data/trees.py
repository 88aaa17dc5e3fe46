"""Folders of images as other tools write them: what is common to finding and reading them."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int8, UInt8

from dclip.data.folder import CLASS_NAMES_FILE, file_keys, read_class_names_file
from dclip.data.images import is_image_name, tell_passed_over
from dclip.data.listing import ImageListing
from dclip.store.paths import AnyPath

ONE_SPLIT = "train"
"""What the one split of a tree without splits is called."""

MAX_ENTRIES = 5_000_000
"""A folder with more entries is refused."""

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class Tree:
    """A folder in the format of some tool, found and not yet read.

    Attributes:
        format: What the format is called in the option ``format``.
        evidence: What is there that speaks for it, for messages.
        splits: At least one; training first.
        read: Opens a split of them.
        sources: Files and folders that all this follows from.
    """

    format: str
    evidence: str
    splits: tuple[str, ...]
    read: Callable[[str], ImageListing] = field(repr=False)
    sources: Callable[[], Sequence[AnyPath]] = field(repr=False)


@dataclass
class Rest:
    """Files that are not read.

    Attributes:
        others: Paths of files that are no images.
        away: Paths of links that lead out of the folder.
    """

    others: list[str] = field(default_factory=list)
    away: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """A sentence for each kind."""
        notes = []
        if self.others:
            notes.append(f"passed over, as no images: {tell_passed_over(self.others)}")
        if self.away:
            notes.append(
                f"passed over, as links that lead out of the folder: {len(self.away)}, such as"
                f" {self.away[0]}; copy what they lead to"
            )
        return tuple(notes)


def list_folder(
    folder: Path, top: Path, rest: Rest | None = None, *, limit: int = MAX_ENTRIES
) -> tuple[list[str], list[str]]:
    """Names of the folders and of the images that lie directly in a folder, each sorted.

    Hidden folders are left out, and what is a link that leads out of ``top``.

    Args:
        folder: ``top`` or a folder below.
        top: The tree.
        rest: Takes what else there is.
        limit: How many entries are looked at.

    Raises:
        ValueError: If there are more than 5,000,000 entries, or a name is not UTF-8.
        OSError: If the folder cannot be read.
    """
    folders, images = [], []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= limit:
                if limit < MAX_ENTRIES:
                    break
                raise ValueError(f"{folder} has more than {MAX_ENTRIES:,} entries")
            if entry.is_symlink() and not _is_below(Path(entry.path), top):
                if rest is not None:
                    rest.away.append(_shown(entry.path, top))
                continue
            if entry.is_dir():
                if not entry.name.startswith("."):
                    folders.append(_text(entry.name, folder))
                elif rest is not None:
                    rest.others.append(_shown(entry.path, top))
            elif is_image_name(entry.name):
                images.append(_text(entry.name, folder))
            elif rest is not None and entry.name != CLASS_NAMES_FILE:
                rest.others.append(_shown(entry.path, top))
    return sorted(folders), sorted(images)


def has_image(folder: Path, top: Path, *, limit: int = MAX_ENTRIES) -> bool:
    """Whether an image lies directly in a folder, as far as that many entries tell.

    Raises:
        OSError: If the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= limit:
                return False
            if not is_image_name(entry.name) or entry.is_dir():
                continue
            if not entry.is_symlink() or _is_below(Path(entry.path), top):
                return True
    return False


def names_below(folder: Path, top: Path, names: Sequence[str]) -> list[str]:
    """Paths relative to ``top`` of files that lie directly in a folder."""
    place = folder.relative_to(top).as_posix()
    return list(names) if place == "." else [f"{place}/{name}" for name in names]


def find_below(folder: Path, place: str) -> Path | None:
    r"""The file or folder at a place that a tool wrote down, if it is there and below a folder.

    Args:
        folder: Of the tree.
        place: Relative to it, or absolute; ``/`` or ``\`` between its parts.
    """
    path = folder / place.replace("\\", "/")
    try:
        return path if path.exists() and _is_below(path, folder) else None
    except (OSError, ValueError):  # too long, or with a character no file name has
        return None


def split_kind(name: str) -> str | None:
    """Which split a folder of that name holds: train, val or test; None if its name tells of none.

    Example:
        >>> [split_kind(name) for name in ("Training", "val2017", "seg_test", "trains", "dog")]
        ['train', 'val', 'test', None, None]
    """
    words = re.split(r"[^a-z]+", name.lower())
    found = {kind for kind, known in _SPLIT_NAMES.items() if any(word in known for word in words)}
    return found.pop() if len(found) == 1 else None


def in_split_order(splits: Sequence[str]) -> tuple[str, ...]:
    """Training, validation, test, and those of other names; by name within each."""
    order = [*_SPLIT_NAMES, None]
    return tuple(sorted(splits, key=lambda name: (order.index(split_kind(name)), name)))


def settle_class_names(
    folder: Path, found: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names of a tree in column order, and notes on how they were read.

    Args:
        folder: May have a file of class names, which says the order.
        found: Names in the tree; without that file they are the class names, sorted.

    Raises:
        ValueError: If a name is not in the file, or there is no name.
    """
    file = folder / CLASS_NAMES_FILE
    if not file.is_file():
        if not found:
            raise ValueError(f"no class in {folder}")
        return tuple(sorted(set(found))), ()
    said = read_class_names_file(file)
    strangers = sorted(set(found) - set(said.names))
    if strangers:
        raise ValueError(f"class {strangers[0]!r} of {folder} is not in {file}")
    return said.names, said.notes


def make_listing(
    folder: Path,
    split: str,
    class_names: Sequence[str],
    files: Sequence[str],
    labels: UInt8[np.ndarray, "images classes"] | Int8[np.ndarray, "images classes"],
    notes: Sequence[str],
) -> ImageListing:
    """The listing of a split of a tree.

    Args:
        folder: Of the tree.
        split: Its name.
        class_names: In column order.
        files: Paths of the images relative to the folder.
        labels: Their label vectors.
        notes: How it was read.

    Raises:
        ValueError: If there is no image.
    """
    if not files:
        raise ValueError(f"no image of split {split!r} in {folder}; {'; '.join(notes)}")
    return ImageListing(
        name="folder",
        split=split,
        class_names=tuple(class_names),
        image_dir=folder,
        keys=file_keys(files),
        file_names=tuple(files),
        labels=labels,
        notes=tuple(notes),
    )


def _shown(path: str, top: Path) -> str:
    """A path relative to the tree, in letters that can be printed."""
    return ascii(Path(path).relative_to(top).as_posix())[1:-1]


def _is_below(path: Path, top: Path) -> bool:
    """Whether what a path leads to, by links too, lies below a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))


def _text(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!a} in {folder} is not UTF-8; rename it") from None
    return name
