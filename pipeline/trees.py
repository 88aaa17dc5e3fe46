"""Folders that other tools wrote: which format one is in, which splits it has, and opening them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dclip.paths import AnyPath, has_folders
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from dclip.data.trees import Tree

TABLE = "table"
"""Our own format, in the option ``format``: ``<split>.csv`` and its like."""


def find_tree(folder: AnyPath, wanted: str | None = None) -> "Tree | None":
    """What tool wrote a folder; None where it is read by its own tables of labels.

    Tables that are called after splits go before all else. Folders at a URL have nothing but those.

    Args:
        folder: Of the images.
        wanted: The format, where the user says it.

    Raises:
        UsageError: There is no such format, the folder is not in it, or it may be in two.
        ValueError: The folder is in a format, and something in it cannot be used.
        OSError: It cannot be read.
    """
    finders = _finders()
    if wanted is not None and wanted not in (TABLE, *finders):
        raise UsageError(f"unknown format {wanted!r}; known are {TABLE}, {', '.join(finders)}")
    if not isinstance(folder, Path) or not folder.is_dir():
        if wanted not in (None, TABLE):
            raise UsageError(f"format={wanted} is for a folder on a disk, not {folder}")
        return None
    if wanted == TABLE:
        return None
    if wanted is not None:
        tree = finders[wanted](folder, True)
        if tree is None:
            raise UsageError(
                f"{folder} is not in the format {wanted}; docs/own_data.md has examples"
            )
        return tree
    if _has_tables(folder):
        return None
    trees = [tree for find in finders.values() if (tree := find(folder, False)) is not None]
    if len(trees) > 1:
        ways = " or ".join(f"format={tree.format} ({tree.evidence})" for tree in trees)
        raise UsageError(f"{folder} may be read in two ways; say which: --options {ways}")
    return trees[0] if trees else None


def folder_splits(folder: AnyPath, options: Mapping[str, str] | None = None) -> list[str]:
    """The splits of a folder of one's own, whatever its format; none if it has no labels.

    Args:
        folder: As after ``folder:``.
        options: Of the data set.

    Raises:
        UsageError: As of `find_tree`.
        ValueError: As of `find_tree`.
        OSError: It cannot be read.
    """
    from dclip.data.folder import find_tables

    tree = find_tree(folder, (options or {}).get("format"))
    if tree is not None:
        return list(tree.splits)
    if not has_folders(folder) or not folder.is_dir():
        return []
    return list(dict.fromkeys(path.stem for path in find_tables(folder)))


def _finders() -> "dict[str, Callable[[Path, bool], Tree | None]]":
    """For each format a function that finds it; the flag tells that the user named it."""
    from dclip.data import class_folders

    return {
        class_folders.FORMAT: lambda folder, is_sure: class_folders.find_class_folders(
            folder, is_sure=is_sure
        )
    }


def _has_tables(folder: Path) -> bool:
    """Whether there are tables of labels of our own in a folder."""
    from dclip.data.folder import find_tables

    return bool(find_tables(folder))
