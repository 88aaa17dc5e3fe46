"""Your own images: a folder of them, and one table of labels per split."""

import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from io import BytesIO, StringIO
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from dclip.data.dataset import parse_class_names
from dclip.data.listing import ImageListing, check_key
from dclip.paths import AnyPath, has_folders

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
"""Kinds of label tables, the one that is preferred first."""

CLASS_NAMES_FILE = "class_names.txt"
"""Optional file beside the tables: one class a line, in column order."""

_BETWEEN_PHRASINGS = "|"

# What a cell of a class column may hold; a table that was written as floats counts as well.
_CELLS = {"0": 0, "1": 1, "-1": -1, "0.0": 0, "1.0": 1, "-1.0": -1, "False": 0, "True": 1}


class _Row(NamedTuple):
    """One line of a table."""

    where: str
    file: str
    labels: Mapping[str, int]  # class to 1 or -1; in a table of class columns also to 0


def read_folder(folder: AnyPath, split: str, *, separator: str = ";") -> ImageListing:
    """The images that ``<folder>/<split>.csv`` (or ``.jsonl``, ``.parquet``) lists, in its order.

    The table has a column ``file``, the path of an image relative to the folder, and either a
    column ``labels`` (class names: a list, or a string joined by the separator, empty for none), or
    one column per class with 1 (occurs), 0 (does not) or -1 (unknown). Other columns are allowed
    beside ``labels``.

    Class names are those of ``<folder>/class_names.txt`` in its order; without that file, the
    labels of all tables of the folder, sorted. Keys are file names without suffix; where that is
    not fit for a key, or not unique, it is made so with a hash.

    Args:
        folder: Holds the tables and the images; local or remote. On a web server, where tables
            cannot be listed, it needs the file of class names.
        split: Stem of the table.
        separator: Between the labels of a string, not empty.

    Raises:
        ValueError: If the folder or table is missing, or what it says cannot be used: a column that
            is missing, a label that is no class, a file listed twice or outside the folder. The
            message names table and row.
        OSError: If a file cannot be read, or a remote store not be reached.
    """
    if has_folders(folder) and not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    if not separator:
        raise ValueError("separator '' separates nothing; use ';'")
    table = _find_table(folder, split)
    rows = list(_read_table(table, separator))
    if not rows:
        raise ValueError(f"{table} lists no image")
    class_names, notes = _class_names(folder, table, rows, separator)
    column = {name: index for index, name in enumerate(class_names)}
    labels = np.zeros((len(rows), len(class_names)), np.int8)
    files: dict[str, str] = {}
    for number, row in enumerate(rows):
        file = _inside(row, table)
        if file in files:
            raise ValueError(f"{table}, {row.where}: {file!r} is listed in {files[file]} already")
        files[file] = row.where
        for label, value in row.labels.items():
            if label not in column:
                raise _unknown_label(label, class_names, f"{table}, {row.where}")
            labels[number, column[label]] = value
    return ImageListing(
        name="folder",
        split=split,
        class_names=class_names,
        image_dir=folder,
        keys=file_keys(list(files)),
        file_names=tuple(files),
        labels=labels,
        notes=notes,
    )


def find_tables(folder: AnyPath) -> list[AnyPath]:
    """Files of a folder that may be label tables, by suffix, sorted by name.

    On a web server there are none to be found.
    """
    if not has_folders(folder):
        return []
    found = [path for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES]
    return sorted(found, key=str)


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


class ClassNames(NamedTuple):
    """What a user's file of class names says.

    Attributes:
        names: In column order.
        notes: Sentences on lines that may have been meant otherwise.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]


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


def _find_table(folder: AnyPath, split: str) -> AnyPath:
    """The one table of a split."""
    places = [folder / f"{split}{suffix}" for suffix in TABLE_SUFFIXES]
    found = [path for path in places if path.is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"split {split!r} of {folder} is in {names}; keep one of them")
    if not found:
        others = ", ".join(repr(path.stem) for path in find_tables(folder))
        wanted = " or ".join(path.name for path in places)
        seen = f"; splits there are {others}" if others else " nor a table of any other split"
        raise ValueError(
            f"no split {split!r} in {folder}: there is no {wanted}"
            + (seen if has_folders(folder) else "")
        )
    return found[0]


def _class_names(
    folder: AnyPath, table: AnyPath, rows: Sequence[_Row], separator: str
) -> ClassNames:
    """From the file of class names; else all labels of all tables, so that splits agree."""
    path = folder / CLASS_NAMES_FILE
    if path.is_file():
        return read_class_names_file(path)
    if not has_folders(folder):
        raise ValueError(
            f"no class names at {path}; a web server does not tell which tables there are, so"
            " write them there, one class a line in column order"
        )
    names = {label for row in rows for label in row.labels}
    for other in find_tables(folder):
        if other != table and "file" in _columns(other):
            names.update(*(row.labels for row in _read_table(other, separator)))
    if not names:
        raise ValueError(f"{table} has no label at all, and there is no {path}")
    return ClassNames(tuple(sorted(names)), ())


def _read_table(path: AnyPath, separator: str) -> Iterator[_Row]:
    """Rows of a table of any kind."""
    first: Mapping[str, object] | None = None
    for where, record in _records(path):
        if first is None:
            first = record
        elif "labels" not in record and record.keys() != first.keys():
            raise ValueError(f"{path}, {where}: columns differ from those of the first row")
        yield _row(record, f"{path}, {where}", where, separator)


def _records(path: AnyPath) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Each row as a mapping, with the words that say where it is."""
    try:
        if path.suffix == ".csv":
            yield from _csv_records(path)
        elif path.suffix == ".jsonl":
            yield from _jsonl_records(path)
        else:
            yield from _parquet_records(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _csv_records(path: AnyPath) -> Iterator[tuple[str, Mapping[str, object]]]:
    reader = csv.DictReader(_text(path), strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise ValueError(f"{path} has a column twice or without a name: {', '.join(names)}")
        for record in reader:
            where = f"line {reader.line_num}"
            if None in record or None in record.values():
                raise ValueError(f"{path}, {where}: not as many fields as the header has")
            yield where, record
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _jsonl_records(path: AnyPath) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, line in enumerate(_text(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object: {line.strip()[:60]}")
        yield f"line {number}", record


def _text(path: AnyPath) -> StringIO:
    """The lines of a file, as they end there."""
    return StringIO(path.read_bytes().decode("utf-8-sig"), newline="")


def _parquet_records(path: AnyPath) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"{path} needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pq.ParquetFile(BytesIO(path.read_bytes())) as table:
            for batch in table.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not Parquet, or damaged: {error}") from error


def _columns(path: AnyPath) -> frozenset[str]:
    """Column names, of JSON lines those of the first; none if it is no table."""
    try:
        return frozenset(next(iter(_records(path)), ("", {}))[1])
    except ValueError:
        return frozenset()


def _row(record: Mapping[str, object], place: str, where: str, separator: str) -> _Row:
    """File and labels of one row."""
    file = record.get("file")
    if "file" not in record:
        raise ValueError(f"{place}: no column 'file'; columns are {', '.join(record)}")
    if not isinstance(file, str) or not file.strip():
        raise ValueError(f"{place}: 'file' must be a path, not {file!r}")
    if "labels" in record:
        names = _label_names(record["labels"], place, separator)
        return _Row(where, file.strip(), dict.fromkeys(names, 1))
    cells = {name: value for name, value in record.items() if name != "file"}
    if not cells:
        raise ValueError(f"{place}: no column 'labels', and no column of a class")
    values = {}
    for name, value in cells.items():
        cell = str(value).strip()
        if cell not in _CELLS:
            raise ValueError(
                f"{place}: column {name!r} has {value!r}; a class column has 1, 0 or -1 (unknown)."
                " A table with a column 'labels' may have others beside it"
            )
        values[name] = _CELLS[cell]
    return _Row(where, file.strip(), values)


def _label_names(value: object, place: str, separator: str) -> list[str]:
    """Class names in a cell of the column ``labels``."""
    if isinstance(value, str):
        names: list[object] = list(value.split(separator)) if value.strip() else []
    elif isinstance(value, list):
        names = value
    else:
        raise ValueError(
            f"{place}: 'labels' must be class names, a list or a string joined by {separator!r},"
            f" not {value!r}"
        )
    stripped = []
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{place}: label {name!r} is no class name")
        stripped.append(name.strip())
    return stripped


def _unknown_label(label: str, class_names: Sequence[str], place: str) -> ValueError:
    close = difflib.get_close_matches(label, class_names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(map(repr, class_names[:8])) + (", ..." if len(class_names) > 8 else "")
    return ValueError(f"{place}: unknown label {label!r}; {hint}classes are {known}")


def _inside(row: _Row, table: AnyPath) -> str:
    """The path of an image, plain, relative to the folder and inside of it."""
    path = PurePosixPath(row.file)
    if path.is_absolute() or ".." in path.parts or "\\" in row.file or "\0" in row.file:
        raise ValueError(f"{table}, {row.where}: {row.file!r} is not inside the folder")
    return str(path)
