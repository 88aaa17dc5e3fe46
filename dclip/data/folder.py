"""Your own images: a folder of them, and tables of labels."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8

from dclip.data.dataset import parse_class_names
from dclip.data.image_files import find_place, paths_inside
from dclip.data.label_text import MARKS, parts_of, short
from dclip.data.listing import ImageListing, check_key
from dclip.data.open_images import (
    display_names,
    find_images,
    is_descriptions,
    read_descriptions,
    split_of,
)
from dclip.data.tables import (
    TABLE_SUFFIXES,
    LabelTable,
    is_label_table,
    is_open_images,
    read_table,
    splits_of,
)
from dclip.store.paths import AnyPath, has_folders
from dclip.words import counted

CLASS_NAMES_FILE = "class_names.txt"
"""Optional file beside the tables: one class a line, in column order."""

# What programs call the pieces of a table: train-00000-of-00002.
_PART = re.compile(r"(.+)-\d{1,9}-of-(\d{1,9})")

_FILES_TO_TRY = 20
_BETWEEN_PHRASINGS = "|"

SEPARATORS = {
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
    "tab": "\t",
    "newline": "\n",
    "space": " ",
}
"""Separators by their names, for command lines."""

# A name made of other names by one of these is a list, unless class_names.txt has it as a name.
_JOINTS = (*MARKS, "/", "+", "&")


class ClassNames(NamedTuple):
    """What a user's file of class names says.

    Attributes:
        names: In column order.
        notes: Sentences on lines that may have been meant otherwise.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(
    folder: AnyPath,
    split: str,
    *,
    separator: str = ";",
    images: Sequence[str] | None = None,
) -> ImageListing:
    """The images that a table of a folder lists for a split, in its order.

    The table is ``<folder>/<split>.csv`` (or ``.jsonl``, ``.parquet``, ``.tsv``); else the one that
    has the split in its column ``split``; else Open Images' own of that split. It has a column
    ``file``, the path of an image relative to the folder (or to the one folder in it where the
    images lie), and one of

    * a column ``labels``: class names, as a list or a string joined by the separator;
    * one column per class with 1 (occurs), 0 (does not) or -1 (unknown);
    * columns ``class`` and ``value``: 1, 0 or -1 for one image and one class. A pair that is not
      there is unknown.

    Class names are those of ``<folder>/class_names.txt`` in its order; without that file, the
    labels of all tables of the folder, sorted. Keys are file names without suffix; where that is
    not fit for a key, or not unique, it is made so with a hash.

    Args:
        folder: Holds the tables and the images; local or remote. On a web server, where tables
            cannot be listed, it needs the file of class names.
        split: Stem of the table, or what its column ``split`` says.
        separator: Between the labels of a string, not empty.
        images: Files of the folder, from `images_of`; those that no table lists are told of in the
            notes.

    Raises:
        ValueError: If the folder or table is missing, or what it says cannot be used: a column that
            is missing, a label that is no class, several labels that read as one, a file listed
            twice or outside the folder. The message names table and row.
        OSError: If a file cannot be read, or a remote store not be reached.
    """
    if has_folders(folder) and not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    if not separator:
        words = ", ".join(SEPARATORS)
        raise ValueError(f"separator '' separates nothing; name one, such as ';' or {words}")
    names_file = folder / CLASS_NAMES_FILE
    given = read_class_names_file(names_file) if names_file.is_file() else None
    known = frozenset(given.names) if given else frozenset()
    path, is_by_column = _find_table(folder, split)
    first = read_table(path, separator=separator, known=known)
    if given is None and not has_folders(folder):
        raise ValueError(
            f"no class names at {names_file}; a web server does not tell which tables there are, so"
            " write them there, one class a line in column order"
        )
    others, notes = _read_others(folder, path, separator, known, is_strict=given is None)
    if given:
        notes = [*given.notes, *notes]
    tables = [first, *(other for other in others if other is not None)]
    if any(table.shape == "open images" for table in tables):
        tables = _name_open_images(folder, tables, split, known)
    if isinstance(folder, Path):
        tables = [_placed(folder, table, split, notes) for table in tables]
    listing = _listing(
        folder,
        split,
        tables,
        given,
        notes,
        rows_of=lambda table, told: _rows_of(table, split, is_by_column, told),
        separator=separator,
    )
    if images is None or None in others:
        return listing
    unlisted = _tell_unlisted(images, tables, paths_inside(folder))
    return replace(listing, notes=(*listing.notes, *unlisted))


def read_tables(
    folder: Path,
    split: str,
    tables: Mapping[str, Path],
    *,
    is_of_split: Callable[[str], bool],
    separator: str = ";",
    unlabelled: str | None = None,
) -> ImageListing:
    """The images of a split of a folder whose tables lie and are called as another tool has it.

    Args:
        folder: Of the tables and the images.
        split: One of ``tables``.
        tables: The table of each split; paths in it are relative to the folder it lies in.
        is_of_split: Whether an image is of the split, by its path; a table may have several.
        separator: As for `read_folder`.
        unlabelled: The column, in small letters, that is no class, and has 1 where an image was
            not labelled: all its labels are unknown. None if there is no such one.

    Raises:
        ValueError: As of `read_folder`.
        OSError: If a file cannot be read.
    """
    names_file = folder / CLASS_NAMES_FILE
    given = read_class_names_file(names_file) if names_file.is_file() else None
    known = frozenset(given.names) if given else frozenset()

    def read(path: Path) -> LabelTable:
        table = read_table(path, separator=separator, known=known)
        spelt = next((c for c in table.classes if c.casefold() == unlabelled), None)
        if spelt is not None and spelt not in known:
            table = _without_unlabelled(table, spelt)
        place = path.parent.relative_to(folder)
        files = [
            file if PurePosixPath(file).is_absolute() else str(place / file) for file in table.files
        ]
        return replace(table, files=tuple(files))

    def rows_of(table: LabelTable, _: list[str]) -> Sequence[int]:
        return [row for row, file in enumerate(table.files) if is_of_split(file)]

    paths = dict.fromkeys([tables[split], *tables.values()])
    read_all = [read(path) for path in paths]
    notes = list(given.notes) if given else []
    return _listing(folder, split, read_all, given, notes, rows_of=rows_of, separator=separator)


def _without_unlabelled(table: LabelTable, name: str) -> LabelTable:
    """A table without its column of images that nobody labelled."""
    is_class = np.array([one != name for one in table.classes])
    labels = table.labels[:, is_class].copy()
    is_unlabelled = table.labels[:, table.classes.index(name)] == 1
    clash = np.flatnonzero(is_unlabelled & (labels == 1).any(axis=1))
    if len(clash):
        raise ValueError(
            f"{table.where(int(clash[0]))}: {name} is 1 and so is a class; set one of them to 0"
        )
    labels[is_unlabelled] = -1
    note = (
        f"column {name!r} of {table.path.name} is no class:"
        f" {counted(int(is_unlabelled.sum()), 'image')} with 1 there, labels of which are unknown"
    )
    return replace(
        table,
        classes=tuple(one for one in table.classes if one != name),
        labels=labels,
        notes=(*table.notes, note),
    )


def _listing(
    folder: AnyPath,
    split: str,
    tables: Sequence[LabelTable],
    given: ClassNames | None,
    notes: list[str],
    *,
    rows_of: Callable[[LabelTable, list[str]], Sequence[int]],
    separator: str,
) -> ImageListing:
    """The images of some rows of the first table; classes are those that are given, or of all."""
    table = tables[0]
    if given:
        class_names = given.names
    else:
        _refuse_joined(tables, separator)
        class_names = tuple(sorted(set().union(*(one.classes for one in tables))))
        if not class_names:
            raise ValueError(
                f"{table.path} has no label at all, and there is no {folder / CLASS_NAMES_FILE}"
            )
        notes += _tell_joined(class_names)
    notes += table.notes
    rows = rows_of(table, notes)
    labels = _labels(table, rows, class_names, notes)
    inside = paths_inside(folder)
    seen: dict[str, int] = {}
    for row in rows:
        file = inside(table.files[row], table.where(row))
        if file in seen:
            raise ValueError(
                f"{table.where(row)}: {file!r} is listed in {table.unit} {table.rows[seen[file]]}"
                " already; write all labels of an image into one row"
            )
        seen[file] = row
    return ImageListing(
        name="folder",
        split=split,
        class_names=class_names,
        image_dir=folder,
        keys=file_keys(list(seen)),
        file_names=tuple(seen),
        labels=labels,
        notes=tuple(notes),
    )


def find_tables(folder: AnyPath) -> list[AnyPath]:
    """Files of a folder that may be label tables, by suffix, sorted by name.

    On a web server there are none to be found.
    """
    if not has_folders(folder):
        return []
    found = [path for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES]
    return sorted((path for path in found if not path.name.startswith(".")), key=str)


def find_splits(folder: AnyPath) -> dict[str, AnyPath]:
    """The splits that a folder has by its label tables, each with its table.

    A split is what a column ``split`` says (in small letters), else the stem of a table; of Open
    Images' tables the word for it in the stem. There is none where no file has the columns of a
    label table; `find_tables` tells what files there are.

    Raises:
        ValueError: If a table has a column ``split`` and rows that cannot be read.
        OSError: If a table cannot be read.
    """
    splits: dict[str, AnyPath] = {}
    for path in find_tables(folder):
        if not is_label_table(path):
            continue
        names = _splits_by_column(path)
        if not names:
            names = (_stem_split(path),)
        splits |= {name: path for name in names if name not in splits}
    return splits


def label_files(folder: AnyPath, split: str) -> list[AnyPath]:
    """The files that a listing of a split follows from, besides the images."""
    tables = find_tables(folder) or [
        place for place in _places(folder, split) if not has_folders(folder) and place.is_file()
    ]
    names = folder / CLASS_NAMES_FILE
    return [*tables, names] if names.is_file() else tables


def file_keys(files: Sequence[str]) -> tuple[str, ...]:
    """One key per file: its path without suffix where that is fit and unique, else with a hash.

    Args:
        files: Paths relative to one folder, each once.

    Example:
        >>> file_keys(["a.jpg", "b/c.jpg"])
        ('a', 'b-c-14d0204ea383')
    """
    stems = [str(PurePosixPath(file).with_suffix("")) for file in files]
    shared = Counter(stems)
    keys = []
    for file, stem in zip(files, stems, strict=True):
        key = re.sub(r"[^A-Za-z0-9_-]+", "-", stem)
        if key != stem or shared[stem] > 1 or len(key) > 128:
            key = f"{key[-100:]}-{sha256(file.encode()).hexdigest()[:12]}"
        keys.append(check_key(key))
    return tuple(keys)


def read_class_names_file(path: AnyPath) -> ClassNames:
    """The classes of a user's file of class names: one a line, in column order.

    A comma is part of the name. Further phrasings of a class may follow after ``|``, which no name
    has; only the name is used.

    Raises:
        ValueError: If the file is missing or not UTF-8, a name is empty, or there twice.
        OSError: If it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"no file of class names {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read class names {path}: {error}") from error
    phrasings = parse_class_names(text, str(path), _BETWEEN_PHRASINGS)
    names = tuple(own[0] for own in phrasings)
    notes = []
    commas = [number for number, name in enumerate(names, start=1) if "," in name]
    if commas:
        notes.append(
            f"{_lines(commas, path)} a comma; {names[commas[0] - 1]!r} is one class (phrasings are"
            f" parted by {_BETWEEN_PHRASINGS!r})"
        )
    several = [number for number, own in enumerate(phrasings, start=1) if len(own) > 1]
    if several:
        first = phrasings[several[0] - 1]
        notes.append(
            f"{_lines(several, path)} further phrasings; of {' | '.join(first)!r} the class is"
            f" {first[0]!r}, and what follows is not used"
        )
    return ClassNames(names, tuple(notes))


def _lines(numbers: Sequence[int], path: AnyPath) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]} of {path.name} has"
    return f"{len(numbers)} lines of {path.name}, such as line {numbers[0]}, have"


# ---------------------------------------------------------------------------------------------
# Which table
# ---------------------------------------------------------------------------------------------


def _places(folder: AnyPath, split: str) -> list[AnyPath]:
    return [folder / f"{split}{suffix}" for suffix in TABLE_SUFFIXES]


def _find_table(folder: AnyPath, split: str) -> tuple[AnyPath, bool]:
    """The one table of a split, and whether it has others in its column ``split``."""
    places = _places(folder, split)
    found = [path for path in places if path.is_file()]
    is_by_column = False
    if not found:
        tables = [path for path in find_tables(folder) if is_label_table(path)]
        found = [path for path in tables if split.casefold() in _splits_by_column(path)]
        is_by_column = bool(found)
        found = found or [path for path in tables if _stem_split(path) == split]
        found = found or [path for path in tables if path.stem.casefold() == split.casefold()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"split {split!r} of {folder} is in {names}; keep one of them")
    if not found:
        others = ", ".join(map(repr, find_splits(folder)))
        wanted = " or ".join(path.name for path in places)
        seen = f"; splits there are {others}" if others else " nor a table of any other split"
        raise ValueError(
            f"no split {split!r} in {folder}: there is no {wanted}"
            + (seen if has_folders(folder) else "")
        )
    return found[0], is_by_column


def _splits_by_column(path: AnyPath) -> tuple[str, ...]:
    """Splits in the column ``split`` of a table that is not called after one of them."""
    if part := _PART.fullmatch(path.stem):
        raise ValueError(
            f"{path} is one of {int(part[2])} parts of a table; write them into one,"
            f" {part[1]}{path.suffix}"
        )
    names = splits_of(path)
    return () if path.stem.casefold() in names else names


def _stem_split(path: AnyPath) -> str:
    found = split_of(path) if path.suffix.lower() == ".csv" and is_open_images(path) else None
    return found or path.stem


def _rows_of(table: LabelTable, split: str, is_by_column: bool, notes: list[str]) -> Sequence[int]:
    """The images of a table that are of a split."""
    name = split.casefold()
    said = table.splits
    if said is None or (not is_by_column and name not in said):
        return range(len(table.files))
    other = next((row for row, one in enumerate(said) if one not in ("", name)), None)
    if not is_by_column:
        if other is not None:
            raise ValueError(
                f"{table.where(other)}: its column of splits has {said[other]!r} in a table called"
                f" {table.path.name}; rename the table, or drop the column"
            )
        return range(len(table.files))
    none = [row for row, one in enumerate(said) if not one]
    if none:
        notes.append(
            f"{len(none):,} rows of {table.path.name} have no split, such as {table.unit}"
            f" {table.rows[none[0]]}; they are in none"
        )
    return [row for row, one in enumerate(said) if one == name]


def _read_others(
    folder: AnyPath, path: AnyPath, separator: str, known: Collection[str], *, is_strict: bool
) -> tuple[list[LabelTable | None], list[str]]:
    """The folder's other tables, and a note of what is none.

    None stands for one that cannot be read, which is an error where it has to be.
    """
    tables: list[LabelTable | None] = []
    passed = []
    for other in find_tables(folder):
        if other == path or is_descriptions(other):
            continue
        if not is_label_table(other):
            passed.append(other.name)
            continue
        try:
            tables.append(read_table(other, separator=separator, known=known))
        except ValueError:
            if is_strict:
                raise
            tables.append(None)
    if not passed:
        return tables, []
    many = f"{len(passed):,} files are no tables of labels, such as {passed[0]}"
    one = f"{passed[0]} is no table of labels"
    return tables, [f"{one if len(passed) == 1 else many}: passed over"]


# ---------------------------------------------------------------------------------------------
# Which classes
# ---------------------------------------------------------------------------------------------


def _labels(
    table: LabelTable, rows: Sequence[int], class_names: Sequence[str], notes: list[str]
) -> Int8[np.ndarray, "images classes"]:
    """Label vectors of some images of a table, in the order of the class names."""
    column = {name: index for index, name in enumerate(class_names)}
    strange = [name for name in table.classes if name not in column]
    if strange:
        row, label = min((table.row_of_class(name), name) for name in strange)
        raise _unknown_label(label, class_names, table.where(row))
    is_partial = table.shape in ("pairs", "open images")
    if table.shape == "columns" and len(table.classes) < len(class_names):
        lacking = [name for name in class_names if name not in set(table.classes)]
        notes.append(
            f"{table.path.name} has no column for {counted(len(lacking), 'class', 'classes')}, such"
            f" as {lacking[0]!r}: without one, a class is taken for absent (0)"
        )
    labels = np.full((len(table.files), len(class_names)), -1 if is_partial else 0, np.int8)
    labels[:, [column[name] for name in table.classes]] = table.labels
    labels[list(table.unlabelled)] = -1
    return labels if isinstance(rows, range) else labels[list(rows)]


def _unknown_label(label: str, class_names: Sequence[str], where: str) -> ValueError:
    joined = parts_of(label)
    longer = [name for name in class_names if name.partition(",")[0].strip() == label]
    close = difflib.get_close_matches(label, class_names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if longer:
        hint = (
            f"{CLASS_NAMES_FILE} has {longer[0]!r}, which is one name: write"
            f" {' | '.join(part.strip() for part in longer[0].split(','))!r} for a name and further"
            " phrasings; "
        )
    elif joined and all(part in class_names for part in joined[1]):
        hint = (
            f"its parts are classes: if labels are joined by {joined[0]!r}, {_option(joined[0])}; "
        )
    known = ", ".join(map(repr, class_names[:8])) + (", ..." if len(class_names) > 8 else "")
    return ValueError(f"{where}: unknown label {short(label)}; {hint}classes are {known}")


def _option(separator: str) -> str:
    word = next((word for word, one in SEPARATORS.items() if one == separator), None)
    return f"give the option separator={word or repr(separator)}"


def _refuse_joined(tables: Sequence[LabelTable], separator: str) -> None:
    """Refuse names that are several: by the other classes, or as nothing says that they are one."""
    names = set().union(*(table.classes for table in tables))
    is_used = any(table.separated for table in tables)
    for table in tables:
        for name in table.classes if table.shape == "labels" else ():
            joined = parts_of(name, _JOINTS)
            if joined is None and not is_used and name in table.from_text:
                words = _names_in(name, names)
                joined = (" ", words) if words else None
            if joined is None:
                continue
            mark, parts = joined
            where = table.where(table.row_of_class(name))
            either = (
                f"if it is a list, {_option(mark)}; if it is one class, list all class names in"
                f" {CLASS_NAMES_FILE}"
            )
            if all(part in names for part in parts):
                raise ValueError(
                    f"{where}: {short(name)} is made of the classes"
                    f" {' and '.join(map(repr, parts[:3]))}; {either}"
                )
            if not is_used and name in table.from_text and parts_of(name):
                raise ValueError(
                    f"{where}: is {short(name)} one class or a list? No labels are joined by"
                    f" {separator!r}; {either}"
                )


def _tell_joined(class_names: Sequence[str]) -> list[str]:
    """Notes on names that might be several."""
    notes = []
    known = set(class_names)
    marked = {name: joined[0] for name in class_names if (joined := parts_of(name))}
    if marked:
        mark = next(iter(marked.values()))
        notes.append(f"{_names(list(marked))} one class; labels are not joined by {mark!r}")
    spaced = [name for name in class_names if _names_in(name, known)]
    if spaced:
        notes.append(f"{_names(spaced)} one class, though its words are classes too")
    return notes


def _names_in(name: str, names: Collection[str]) -> list[str]:
    """The other names that a name is made of by spaces; none if it is not."""
    words = name.split()
    made: list[list[str] | None] = [[]]  # of the first words, by their number
    for end in range(1, len(words) + 1):
        ways = (
            [*before, " ".join(words[start:end])]
            for start in range(end)
            if (before := made[start]) is not None
            and end - start < len(words)
            and " ".join(words[start:end]) in names
        )
        made.append(next(ways, None))
    return made[-1] or []


def _names(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{short(names[0])} is"
    return f"{len(names):,} names have several parts; {short(names[0])} is"


def _name_open_images(
    folder: AnyPath, tables: Sequence[LabelTable], split: str, known: Collection[str]
) -> list[LabelTable]:
    """Tables with the names of classes for their ids, and the paths of images for theirs."""
    published = [table for table in tables if table.shape == "open images"]
    ids = sorted(set().union(*(table.classes for table in published)))
    files = find_tables(folder) or [folder / "class-descriptions.csv"]
    descriptions = read_descriptions([path for path in files if path.is_file()])
    name_of = dict(zip(ids, display_names(ids, descriptions, published[0].path), strict=True))
    named = []
    for number, table in enumerate(tables):
        if table.shape != "open images":
            named.append(table)
            continue
        place = find_images(folder, split if number == 0 else _stem_split(table.path), table.files)
        names = [name_of[one] for one in table.classes]
        kept = [column for column, name in enumerate(names) if not known or name in known]
        notes = list(table.notes)
        if len(kept) < len(names):
            notes.append(
                f"{table.path.name}: {len(names) - len(kept):,} of {len(names):,} classes are not"
                f" in {CLASS_NAMES_FILE}; passed over"
            )
        named.append(
            replace(
                table,
                files=tuple(f"{place}{one}.jpg" for one in table.files),
                classes=tuple(names[column] for column in kept),
                labels=table.labels[:, kept] if len(kept) < len(names) else table.labels,
                notes=tuple(notes),
            )
        )
    return named


# ---------------------------------------------------------------------------------------------
# Which files
# ---------------------------------------------------------------------------------------------


def _placed(folder: Path, table: LabelTable, split: str, notes: list[str]) -> LabelTable:
    """A table with its paths relative to the folder, where they were to a folder in it."""
    inside = paths_inside(folder)
    rows_of: dict[str, list[int]] = {}
    for row in range(len(table.files)):
        rows_of.setdefault(table.splits[row] if table.splits else "", []).append(row)
    files = list(table.files)
    for name, rows in rows_of.items():
        tried = []
        for row in rows[:_FILES_TO_TRY]:
            with suppress(ValueError):  # told when that split is opened
                tried.append(inside(files[row], table.where(row)))
        place = find_place(folder, name or table.path.stem, tried)
        if not place:
            continue
        for row in rows:
            files[row] = f"{place}{files[row]}"
        if (name or table.path.stem.casefold()) == split.casefold():
            notes.append(f"images of {table.path.name} lie in {place}, which its paths leave out")
    return replace(table, files=tuple(files))


def _tell_unlisted(
    images: Sequence[str], tables: Sequence[LabelTable], inside: Callable[[str, str], str]
) -> list[str]:
    """A note on image files that no table lists."""
    listed = set()
    for table in tables:
        for row, file in enumerate(table.files):
            try:
                listed.add(inside(file, table.where(row)))
            except ValueError:
                continue  # told when that split is opened
    unlisted = [name for name in images if name not in listed]
    if not unlisted:
        return []
    if len(unlisted) == 1:
        return [f"1 image file is listed by no table: {unlisted[0]!r}"]
    return [f"{len(unlisted):,} image files are listed by no table, such as {unlisted[0]!r}"]
