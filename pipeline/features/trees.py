"""Folders that other tools wrote: which format one is in, which splits it has, and opening them."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dclip.data import class_folders, few_shot_splits, label_studio, tool_tables, yolo
from dclip.data.folder import SEPARATORS, find_splits, find_tables
from dclip.data.label_studio import is_export
from dclip.data.listing import ImageListing
from dclip.data.tables import is_label_table
from dclip.data.tool_tables import is_metadata
from dclip.data.trees import (
    ONE_SPLIT,
    Tree,
    find_below,
    has_image,
    in_split_order,
    list_folder,
    split_kind,
)
from dclip.data.yolo import read_yolo, yolo_sources
from dclip.store.paths import AnyPath, has_folders
from pipeline.terminal.errors import UsageError
from pipeline.terminal.pages import page

TABLE = "table"
"""Our own format, in the option ``format``: ``<split>.csv`` and its like."""

CLASS_FOLDERS = "class-folders"
"""The one format that is told by nothing but folders."""

_YOLO_SPLITS = ("train", "val", "test")
_MAX_YAML_FILES = 20
_LOOKED_AT = 10
_MAX_YAML_BYTES = 1 << 18


def find_tree(folder: AnyPath, options: Mapping[str, str] | None = None) -> Tree | None:
    """What tool wrote a folder; None where it is read by its own tables of labels.

    Tables that are called after splits go before all else. Folders at a URL have nothing but those.

    Args:
        folder: Of the images.
        options: Of the data set: ``format``, where the user says it, and ``separator``.

    Raises:
        UsageError: There is no such format, the folder is not in it, or it may be in two.
        ValueError: The folder is in a format, and something in it cannot be used.
        OSError: It cannot be read.
    """
    options = options or {}
    wanted = options.get("format")
    finders = _finders(separator_of(options))
    if wanted is not None and wanted not in (TABLE, *finders):
        raise UsageError(f"unknown format {wanted!r}; known are {TABLE}, {', '.join(finders)}")
    if not isinstance(folder, Path) or not folder.is_dir():
        if wanted not in (None, TABLE):
            raise UsageError(f"format={wanted} is for a folder on a disk, not {folder}")
        return None
    folder = folder.absolute()
    if wanted == TABLE:
        return None
    if wanted is not None:
        tree = finders[wanted](folder, True)
        if tree is None:
            raise UsageError(
                f"{folder} is not in the format {wanted}; {page('own_data')} has examples"
            )
        return tree
    if _has_tables(folder):
        return None
    found = [find(folder, False) for name, find in finders.items() if name != CLASS_FOLDERS]
    trees = [tree for tree in found if tree is not None]
    try:
        tree = finders[CLASS_FOLDERS](folder, False)
        # a file of splits tells more of the same folders
        if tree is not None and not any(one.format == few_shot_splits.FORMAT for one in trees):
            trees.append(tree)
    except ValueError:
        if not trees:  # else its folders need not be classes
            raise
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
    tree = find_tree(folder, options)
    if tree is not None:
        return list(tree.splits)
    if not has_folders(folder) or not folder.is_dir():
        return []
    # where none is a table of labels, opening one tells why
    return list(find_splits(folder) or dict.fromkeys(path.stem for path in find_tables(folder)))


def no_labels(folder: AnyPath) -> str:
    """Why a folder without labels cannot be used, and what it may be instead."""
    said = (
        f"no labels in {folder}: neither tables train.csv and test.csv (or .jsonl, .parquet) with"
        f" columns file and labels, nor a folder per class, nor what {page('own_data')} lists"
    )
    if any(next(iter(folder.glob(way)), None) for way in ("*/*.coco.json", "annotations/*.json")):
        return f"{said}; it looks like COCO's format: --dataset coco --root {folder}"
    below = itertools.islice((path for path in folder.iterdir() if path.is_dir()), _LOOKED_AT)
    for place in (folder.parent, *sorted(below, key=str)):
        try:
            if find_tables(place) or (place != folder.parent and find_tree(place) is not None):
                return f"{said}; there are labels in {place}: is it folder:{place}?"
        except (ValueError, UsageError, OSError):
            continue
    return said


def separator_of(options: Mapping[str, str]) -> str:
    """What parts the labels in a cell of a table: a character, or the word for one."""
    separator = options.get("separator", ";")
    return SEPARATORS.get(separator, separator)


def _finders(separator: str) -> dict[str, Callable[[Path, bool], Tree | None]]:
    """For each format a function that finds it; the flag tells that the user named it."""
    return {
        CLASS_FOLDERS: lambda folder, is_sure: class_folders.find_class_folders(
            folder, is_sure=is_sure
        ),
        yolo.FORMAT: lambda folder, _: _find_yolo(folder),
        tool_tables.METADATA: lambda folder, _: tool_tables.find_metadata(
            folder, separator=separator
        ),
        tool_tables.CLASSES: lambda folder, _: tool_tables.find_classes_csv(folder),
        label_studio.FORMAT: lambda folder, _: label_studio.find_label_studio(folder),
        few_shot_splits.FORMAT: lambda folder, is_sure: few_shot_splits.find_few_shot(
            folder, is_sure=is_sure
        ),
    }


def _has_tables(folder: Path) -> bool:
    """Whether there are tables of labels of our own in a folder, or tables called after splits."""
    return any(split_kind(path.stem) or is_label_table(path) for path in own_tables(folder))


def own_tables(folder: AnyPath) -> list[AnyPath]:
    """Tables in a folder that are not another tool's."""
    return [path for path in find_tables(folder) if not _is_of_a_tool(path)]


def _is_of_a_tool(path: AnyPath) -> bool:
    """Whether a table is another tool's, which does not call or place it as ours do."""
    return isinstance(path, Path) and (is_export(path) or is_metadata(path))


# ---------------------------------------------------------------------------------------------
# Ultralytics
# ---------------------------------------------------------------------------------------------


def _find_yolo(folder: Path) -> Tree | None:
    """A tree of Ultralytics' format: a YAML file with names, or ``classes.txt`` beside labels."""
    found = _read_yolo_yaml(folder) or _read_yolo_classes(folder)
    if found is None:
        return None
    file, names, splits, notes = found
    if not splits:
        raise ValueError(
            f"{file}: no split of it is in {folder}: {'; '.join(notes) or 'it names none'}"
        )

    def read(split: str) -> ImageListing:
        listing = read_yolo(folder, split, splits[split], names)
        return replace(listing, notes=(*listing.notes, *notes))

    return Tree(
        yolo.FORMAT,
        f"{file.name} with {len(names)} class names",
        in_split_order(list(splits.keys())),
        read,
        lambda: [file, *(path for split in splits for path in yolo_sources(folder, splits[split]))],
    )


class _Yolo(NamedTuple):
    """What a YAML file of Ultralytics' says: class names by number, places of images by split."""

    file: Path
    names: Mapping[int, str]
    splits: Mapping[str, Sequence[str]]
    notes: Sequence[str]


def _read_yolo_yaml(folder: Path) -> _Yolo | None:
    """The one YAML file of a folder that has class names and the places of splits."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    told = {}
    for file in files[:_MAX_YAML_FILES]:
        try:
            content = _read_plain_yaml(file)
        except ValueError:
            if file.stem in ("data", "dataset"):
                raise
            continue  # of something else
        if "names" in content and any(split in content for split in _YOLO_SPLITS):
            told[file] = content
    if len(told) > 1:
        raise ValueError(f"{' and '.join(map(str, told))} each tell of classes; keep one of them")
    for file, content in told.items():
        names = _yolo_names(file, content)
        splits, notes = {}, []
        for split in _YOLO_SPLITS:
            given = content.get(split) or []
            places = [given] if isinstance(given, str) else given
            if not isinstance(places, list) or not all(isinstance(p, str) for p in places):
                raise ValueError(f"{file}: {split!r} must be a folder, or a list of folders")
            found = [_yolo_place(folder, content.get("path"), place) for place in places]
            gone = [place for place, path in zip(places, found, strict=True) if path is None]
            if gone:
                notes.append(f"split {split!r} of {file.name}: no {gone[0]} in {folder}")
            elif places:
                splits[split] = [path for path in found if path is not None]
        root = content.get("path")
        if isinstance(root, str) and root and find_below(folder, root) is None:
            notes.append(f"'path' of {file.name} is {root}, which is not here; {folder} is taken")
        return _Yolo(file, names, splits, notes)
    return None


def _yolo_place(folder: Path, root: object, place: str) -> str | None:
    """Where images are, relative to the tree; None if that is not below it.

    Relative to ``path`` where that leads somewhere, else to the file; Roboflow writes one ``../``
    too many.
    """
    tops = [folder / root] if isinstance(root, str) and root else []
    if isinstance(root, str) and root.startswith("/") and place.startswith(f"{root.rstrip('/')}/"):
        place = place.removeprefix(f"{root.rstrip('/')}/")  # the tree lay there
    for top in (*tops, folder):
        for way in (place, place.removeprefix("../")):
            path = find_below(folder, os.path.normpath(top / way))
            if path is not None and path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
    return None


def _yolo_names(file: Path, content: Mapping[str, object]) -> dict[int, str]:
    """Class names by number.

    Raises:
        ValueError: They are no list or mapping of names, or not as many as ``nc`` says.
    """
    given = content["names"]
    pairs: Any = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(pairs, dict) or not pairs:
        raise ValueError(f"{file}: 'names' must be a list of class names, or number: name")
    names: dict[int, str] = {}
    for number, name in pairs.items():
        if not str(number).isdecimal() or not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{file}: class {str(number)[:60]}: {str(name)[:60]!r} is no class name"
            )
        names[int(number)] = name.strip()
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice or len(names) < len(pairs):
        raise ValueError(f"{file}: a class is there twice: {(twice or list(names.values()))[0]!r}")
    count = content.get("nc")
    if count and str(count) != str(len(names)):
        raise ValueError(f"{file}: nc is {str(count)[:20]}, and there are {len(names)} names")
    return names


def _read_yolo_classes(folder: Path) -> _Yolo | None:
    """What Label Studio and LabelImg write: ``classes.txt``, ``images/`` and ``labels/``."""
    file = folder / "classes.txt"
    if not all(path.exists() for path in (file, folder / "images", folder / "labels")):
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error
    names = _yolo_names(file, {"names": [line for line in lines if line.strip()]})
    tops, _ = list_folder(folder / "images", folder)
    splits = {top: [f"images/{top}"] for top in tops if split_kind(top)}
    if splits and has_image(folder / "images", folder):
        raise ValueError(
            f"{folder}/images has images, and folders of splits, such as {next(iter(splits))}; is"
            f" this {yolo.FORMAT}? Move the images into the folder of their split"
        )
    return _Yolo(file, names, splits or {ONE_SPLIT: ["images"]}, [])


def _read_plain_yaml(file: Path) -> Mapping[str, object]:
    """A YAML file as text, lists and mappings of text; empty if it is no mapping.

    Raises:
        ValueError: It is no YAML, or longer, deeper or more knotted than such files are.
    """

    class Loader(yaml.BaseLoader):
        """Leaves all values text, so that a class called no is not false; knows no aliases."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            if len(set(keys)) < len(keys):
                raise yaml.YAMLError(f"a key is there twice, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep=deep)

    with file.open("rb") as opened:
        data = opened.read(_MAX_YAML_BYTES + 1)
    if len(data) > _MAX_YAML_BYTES:
        raise ValueError(f"{file} has more than {_MAX_YAML_BYTES:,} bytes")
    try:
        content = yaml.load(data.decode("utf-8-sig"), Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}
