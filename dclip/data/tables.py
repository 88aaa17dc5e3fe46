"""Tables of labels, as people and programs write them: CSV, JSON lines, Parquet; in four shapes."""

import csv
import itertools
import json
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int8

from dclip.data.images import is_image_name
from dclip.data.label_text import check_label, check_text, read_labels, short
from dclip.store.paths import AnyPath

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet", ".tsv")
"""Kinds of tables, the one that is preferred first."""

FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "image_path")
"""What the column of images may be called; the first goes before all others."""

LABEL_COLUMNS = ("labels", "tags", "label", "classes", "class")
"""What the column of class names may be called; the first goes before all others."""

PAIR_COLUMNS = ("class", "label", "class_name")
"""What the column of class names is called beside a column ``value``."""

SPLIT_COLUMNS = ("set", "subset", "partition", "fold", "phase")
"""What the column of splits is called besides ``split``, where it has words such as ``train``."""

MAX_CELLS = 1 << 32
"""Images times classes; a table of more is refused."""

# What a cell of a class column may hold, floats and null included; True equals 1 and False 0.
_CELLS: dict[object, int] = {0: 0, 1: 1, -1: -1, None: -1}
_CELLS |= {"0": 0, "1": 1, "-1": -1, "0.0": 0, "1.0": 1, "-1.0": -1}
_WORDS: dict[object, int] = {"false": 0, "true": 1, "no": 0, "yes": 1}
_CELLS |= _WORDS
_BYTES = {cell: value & 0xFF for cell, value in _CELLS.items()}
_BYTES |= {write(str(cell)): _BYTES[cell] for cell in _WORDS for write in (str.upper, str.title)}

_SPLIT_WORDS = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")
)

_ABSENT = object()  # of a JSON line that lacks a column of the first

_PANDAS_INDEX = "__index_level_0__"
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_OPEN_IMAGES = ("ImageID", "LabelName", "Confidence")

_Data: TypeAlias = Callable[[], IO[bytes]]
_Shape: TypeAlias = Literal["labels", "columns", "pairs", "open images"]


@dataclass(frozen=True, eq=False)
class LabelTable:
    """What one table says of its images.

    Attributes:
        path: The file.
        shape: ``"labels"``: a column of class names; ``"columns"``: one column a class;
            ``"pairs"``: one row for an image and a class; ``"open images"``: that with Open
            Images' columns.
        files: Paths of the images as they are written there, in its order; in pairs each once.
        rows: Line or row that (first) has each image.
        classes: Classes it speaks of, in the order they appear.
        labels: 1 where a class occurs, 0 where it does not, -1 where that is not known.
        splits: What its column ``split`` says of each image, in small letters; None without one.
        unit: ``"line"`` or ``"row"``.
        from_text: Classes that stand in cells of text, joined by a separator or alone.
        separated: Whether any cell has several names joined by the separator.
        unlabelled: Images of whose labels nothing is known, by their place.
        notes: Sentences on how it was read.
    """

    path: AnyPath
    shape: _Shape
    files: tuple[str, ...]
    rows: Sequence[int]
    classes: tuple[str, ...]
    labels: Int8[np.ndarray, "images classes"]
    splits: tuple[str, ...] | None
    unit: str
    from_text: frozenset[str] = frozenset()
    separated: bool = False
    unlabelled: Sequence[int] = ()
    notes: tuple[str, ...] = field(default=())

    def where(self, image: int) -> str:
        """File and line of an image, for messages."""
        return f"{self.path}, {self.unit} {self.rows[image]}"

    def row_of_class(self, name: str) -> int:
        """The first image that has a class; the first of all where none has."""
        return int(np.argmax(self.labels[:, self.classes.index(name)] == 1))


class _Roles(NamedTuple):
    """What the columns of a table are."""

    shape: _Shape
    file: str
    label: str | None = None
    value: str | None = None
    split: str | None = None
    is_sure: bool = True  # not so where only the name of a column speaks for a table of labels


class _Opened(NamedTuple):
    """A table file: columns, first row, and all rows' cells of some columns."""

    columns: tuple[str, ...]
    unit: str
    read: Callable[[Sequence[str]], Iterator[tuple[int, Sequence[object]]]]


def read_table(path: AnyPath, *, separator: str = ";", known: Collection[str] = ()) -> LabelTable:
    """A table of labels, whatever its shape; see `LabelTable` and docs/datasets.md.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``; local or remote.
        separator: Between names in a cell of text.
        known: Class names, where they are known; see `read_labels`.

    Raises:
        ValueError: If it cannot be used; the message names table and row.
        OSError: If it cannot be read.
    """
    opened = _open(path)
    roles = _roles(path, opened)
    if roles.shape == "labels":
        return _read_labels(path, opened, roles, separator, known)
    if roles.shape == "columns":
        return _read_columns(path, opened, roles, known)
    return _read_pairs(path, opened, roles)


def is_label_table(path: AnyPath) -> bool:
    """Whether columns and first row are those of a table of labels.

    A table with a column ``file`` counts as one, so that what is wrong with it is told.
    """
    try:
        return _roles(path, _open(path)).is_sure
    except ValueError:
        return False


def columns_of(path: AnyPath) -> tuple[str, ...]:
    """The columns of a table.

    Raises:
        ValueError: If it cannot be read.
        OSError: If it cannot be read from where it is.
    """
    return _open(path).columns


def cells_of(path: AnyPath, columns: Sequence[str]) -> Iterator[tuple[str, Sequence[object]]]:
    """Cells of some columns of a table, row by row, each with where it stands.

    Args:
        path: As for `read_table`.
        columns: Some of `columns_of`. In JSON lines a row that lacks one has None there.

    Raises:
        ValueError: If it cannot be read; the message names file and row.
        OSError: If it cannot be read from where it is.
    """
    opened = _open(path)
    for line, cells in opened.read(columns):
        there = [None if cell is _ABSENT else cell for cell in cells[: len(columns)]]
        yield f"{path}, {opened.unit} {line}", there


def splits_of(path: AnyPath) -> tuple[str, ...]:
    """What the column ``split`` of a table says, each once, in the table's order; none without one.

    Raises:
        ValueError: If it is no table of labels.
        OSError: If it cannot be read.
    """
    opened = _open(path)
    roles = _roles(path, opened)
    if roles.split is None:
        return ()
    found = {_split_name(cell): None for _, (cell,) in opened.read([roles.split])}
    return tuple(name for name in found if name)


def is_open_images(path: AnyPath) -> bool:
    """Whether a table has the columns of Open Images' image-level labels."""
    return set(_OPEN_IMAGES) <= set(_open(path).columns)


# ---------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------


def _roles(path: AnyPath, opened: _Opened) -> _Roles:
    """What each column is, by its name; where that leaves it open, by the first row."""
    columns = opened.columns
    if set(_OPEN_IMAGES) <= set(columns):
        return _Roles("open images", *_OPEN_IMAGES)
    file = _choose(path, columns, FILE_COLUMNS, "of images")
    if not columns:
        raise ValueError(f"{path} lists no image")
    if file is None:
        raise ValueError(
            f"{path}: no column 'file' ({', '.join(FILE_COLUMNS[1:])} do as well); columns are"
            f" {_list(columns)}"
        )
    cell = dict(zip(columns, _first(opened, path), strict=True))
    rest = [column for column in columns if column != file]
    split = next((c for c in rest if c.casefold() == "split" and _cell(cell[c]) is None), None)
    if split is None:
        split = next((c for c in rest if _has_splits(c, cell[c])), None)
    pair = next((column for column in rest if column.casefold() in PAIR_COLUMNS), None)
    value = next((column for column in rest if column.casefold() == "value"), None)
    if LABEL_COLUMNS[0] in rest:
        return _Roles("labels", file, LABEL_COLUMNS[0], None, split)
    if pair is not None and value is not None:
        return _Roles("pairs", file, pair, value, split)
    classes = [column for column in rest if column != split]
    values = [cell[column] for column in classes]
    is_wide = all(_cell(value) is not None for value in values) and any(
        value is not None for value in values
    )
    label = (
        None if is_wide and len(classes) > 1 else _choose(path, rest, LABEL_COLUMNS, "of labels")
    )
    if label is None:
        return _Roles("columns", file, split=split, is_sure=is_wide or file == FILE_COLUMNS[0])
    if is_wide:
        raise ValueError(
            f"{path}: column {label!r} has {cell[label]!r}: is that a class or a number of one?"
            f" Call the column by its class, or 'labels' and write class names in it"
        )
    return _Roles("labels", file, label, None, split)


def _has_splits(column: str, value: object) -> bool:
    """Whether a column of another name than ``split`` says which split each image is of."""
    return column.casefold() in SPLIT_COLUMNS and _split_name(value) in _SPLIT_WORDS


def _choose(path: AnyPath, columns: Sequence[str], names: Sequence[str], what: str) -> str | None:
    """The column of one of some names, in letters of any size; the first name goes before all."""
    if names[0] in columns:
        return names[0]
    found = [column for column in columns if column.casefold() in names]
    if len(found) > 1:
        raise ValueError(
            f"{path}: columns {_list(found)} may each be that {what}; call the one that is"
            f" {names[0]!r}"
        )
    return found[0] if found else None


def _read_labels(
    path: AnyPath, opened: _Opened, roles: _Roles, separator: str, known: Collection[str]
) -> LabelTable:
    """One row an image, its class names in one cell."""
    assert roles.label is not None
    column: dict[str, int] = {}
    files, rows, splits = [], array("q"), []
    places_row, places_column, unknown = array("q"), array("q"), []
    from_text: set[str] = set()
    separated = False
    wanted = [roles.file, roles.label, *([roles.split] if roles.split else [])]
    for line, cells in opened.read(wanted):
        where = f"{path}, {opened.unit} {line}"
        _refuse_absent(cells[: len(wanted)], where)
        files.append(_file(cells[0], roles.file, where))
        try:
            names, is_text = _names(cells[1], separator, known)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if names is None:
            unknown.append(len(rows))
        elif is_text:
            from_text.update(names)
            separated |= len(names) > 1
        for name in names or ():
            places_row.append(len(rows))
            places_column.append(column.setdefault(name, len(column)))
        rows.append(line)
        if roles.split:
            splits.append(_split_name(cells[2]))
    labels = _matrix(path, len(rows), len(column), 0)
    labels[np.array(places_row), np.array(places_column)] = 1
    labels[unknown] = -1
    notes = []
    rest = [column for column in opened.columns if column not in wanted]
    if rest:
        notes.append(f"{path.name}: columns that are not looked at: {_list(rest)}")
    if unknown:
        notes.append(
            f"{path.name}: labels of {len(unknown):,} images are null, such as those of"
            f" {files[unknown[0]]!r}; null is unknown (-1), an empty list or text is none"
        )
    if column and all(name.lstrip("-").isdecimal() for name in column):
        notes.append(f"{path.name}: all labels are numbers, {_list(list(column))}; taken for names")
    return LabelTable(
        path,
        "labels",
        tuple(files),
        rows,
        tuple(column),
        labels,
        tuple(splits) if roles.split else None,
        opened.unit,
        frozenset(from_text),
        separated,
        unknown,
        tuple(notes),
    )


def _names(value: object, separator: str, known: Collection[str]) -> tuple[list[str] | None, bool]:
    """Class names in a cell, None where it is null, and whether they are text with a separator."""
    if value is None:
        return None, False
    if isinstance(value, str):
        names, is_list = read_labels(value, separator, known)
        return names, not is_list
    if isinstance(value, list):
        return [check_label(name, known) for name in value], False
    raise ValueError(
        f"labels must be class names, a list or a string joined by {separator!r}, not"
        f" {short(value)}"
    )


def _read_columns(
    path: AnyPath, opened: _Opened, roles: _Roles, known: Collection[str]
) -> LabelTable:
    """One row an image, one column a class."""
    names = [name for name in opened.columns if name not in (roles.file, roles.split)]
    for name in names:
        try:
            check_label(name, known)
        except ValueError as error:
            raise ValueError(f"{path}, its header: {error}") from None
    if not names:
        raise ValueError(f"{path}: no column 'labels', and no column of a class")
    split = [roles.split] if roles.split else []
    files, rows, splits, cells_of_all = [], array("q"), [], bytearray()
    for line, cells in opened.read([roles.file, *split, *names]):
        rows.append(line)
        files.append(_file(cells[0], roles.file, f"{path}, {opened.unit} {line}"))
        if split:
            splits.append(_split_name(cells[1]))
        values = cells[1 + len(split) :]
        try:
            cells_of_all += bytes(map(_BYTES.__getitem__, values))
        except (KeyError, TypeError):
            where = f"{path}, {opened.unit} {line}"
            cells_of_all += bytes(_checked_cells(names, values, where))
    labels = np.frombuffer(cells_of_all, np.int8).reshape(len(rows), len(names))
    return LabelTable(
        path,
        "columns",
        tuple(files),
        rows,
        tuple(names),
        labels,
        tuple(splits) if split else None,
        opened.unit,
    )


def _checked_cells(names: Sequence[str], values: Sequence[object], where: str) -> Iterator[int]:
    """Cells of class columns as bytes, those with spaces and capitals as well."""
    _refuse_absent(values, where)
    for name, value in zip(names, values, strict=True):
        cell = _cell(value)
        if cell is None:
            raise ValueError(
                f"{where}: column {name!r} has {short(value)}; a class column has 1, 0 or -1"
                " (unknown). A table with a column 'labels' may have others beside it"
            )
        yield cell & 0xFF


def _refuse_absent(cells: Sequence[object], where: str) -> None:
    if any(cell is _ABSENT for cell in cells):
        raise ValueError(f"{where}: columns differ from those of the first row")


def _cell(value: object) -> int | None:
    """What a cell of a class column says; None where it is not one."""
    if isinstance(value, str):
        value = value.strip().casefold()
    return _CELLS.get(value) if isinstance(value, str | int | float | None) else None


def _read_pairs(path: AnyPath, opened: _Opened, roles: _Roles) -> LabelTable:
    """One row for an image and a class; a pair that has no row is unknown."""
    assert roles.label is not None
    assert roles.value is not None
    is_open_images = roles.shape == "open images"
    split = [roles.split] if roles.split else []
    image_of: dict[str, int] = {}
    column: dict[str, int] = {}
    rows, splits = array("q"), []
    lines, images, columns, values = array("q"), array("q"), array("q"), array("b")
    wanted = [roles.file, roles.label, roles.value, *split]
    for line, cells in opened.read(wanted):
        where = f"{path}, {opened.unit} {line}"
        _refuse_absent(cells[: len(wanted)], where)
        file = _file(cells[0], roles.file, where)
        image = image_of.setdefault(file, len(image_of))
        said = _split_name(cells[3]) if split else ""
        if image == len(rows):
            rows.append(line)
            splits.append(said)
        elif said != splits[image]:
            raise ValueError(f"{where}: {file!r} is in split {splits[image]!r} and in {said!r}")
        name = cells[1]
        if not isinstance(name, str) or name not in column:
            try:
                name = check_label(name)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        lines.append(line)
        images.append(image)
        columns.append(column.setdefault(name, len(column)))
        values.append(
            _confidence(cells[2], where) if is_open_images else _value(cells[2], roles.value, where)
        )
    labels = _matrix(path, len(rows), len(column), -1)
    row, place_of, value = np.array(images), np.array(columns), np.array(values)
    labels[row[value == 0], place_of[value == 0]] = 0
    clash = (value == 1) & (labels[row, place_of] == 0)
    if clash.any():
        number = int(np.argmax(clash))
        pair = (row == row[number]) & (place_of == place_of[number])
        other = int(np.argmax(pair & (value == 0)))
        raise ValueError(
            f"{path}, {opened.unit} {lines[number]}: {list(image_of)[row[number]]!r} has class"
            f" {list(column)[place_of[number]]!r} here, and not in {opened.unit} {lines[other]}"
        )
    labels[row[value == 1], place_of[value == 1]] = 1
    known = int((labels >= 0).sum())
    notes = [
        f"{path.name}: {known:,} of {labels.size:,} pairs of image and class are known; the others"
        " are unknown (-1)"
    ]
    if not (labels == 0).any():
        notes.append(f"{path.name}: no pair has the value 0, so no class is known to be absent")
    return LabelTable(
        path,
        roles.shape,
        tuple(image_of),
        rows,
        tuple(column),
        labels,
        tuple(splits) if split else None,
        opened.unit,
        notes=tuple(notes),
    )


def _value(value: object, column: str, where: str) -> int:
    cell = _cell(value)
    if cell is None:
        raise ValueError(
            f"{where}: column {column!r} has {short(value)}; a pair of image and class has 1, 0 or"
            " -1 (unknown)"
        )
    return cell


def _confidence(value: object, where: str) -> int:
    """Open Images: 1 was seen by a person, 0 was looked for in vain, else a machine's guess."""
    if value in ("1", "0"):
        return int(value == "1")
    try:
        number = float(value) if isinstance(value, str | int | float) else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"{where}: 'Confidence' must be from 0 to 1, not {short(value)}")
    return int(number) if number in (0, 1) else -1


def _matrix(path: AnyPath, images: int, classes: int, fill: int) -> Int8[np.ndarray, "n c"]:
    if images * classes > MAX_CELLS:
        raise ValueError(
            f"{path} has {images:,} images and {classes:,} classes, too many to be labels; take"
            " fewer of either"
        )
    return (
        np.full((images, classes), fill, np.int8) if fill else np.zeros((images, classes), np.int8)
    )


def _file(value: object, column: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {column!r} must be a path, not {short(value)}")
    try:
        return check_text(value.strip())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _split_name(value: object) -> str:
    return value.strip().casefold() if isinstance(value, str) else ""


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def _open(path: AnyPath) -> _Opened:
    """Columns of a table file, and a way to read its rows."""
    openers = {".parquet": _open_parquet, ".jsonl": _open_jsonl}
    opener = openers.get(path.suffix.lower(), _open_csv)
    if isinstance(path, Path):
        return opener(path, lambda: path.open("rb"))
    data = path.read_bytes()
    return opener(path, lambda: BytesIO(data))


def _first(opened: _Opened, path: AnyPath) -> Sequence[object]:
    rows = opened.read(opened.columns)
    for _, cells in rows:
        return cells
    raise ValueError(f"{path} lists no image")


def _text(path: AnyPath, data: _Data) -> Iterator[str]:
    """Lines of a file, as they end there."""
    try:
        with TextIOWrapper(data(), encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _open_csv(path: AnyPath, data: _Data) -> _Opened:
    delimiter = _delimiter(path, data)
    first = next(_csv_rows(path, data, delimiter), None)
    header = [] if first is None else [name.strip() for name in first[1]]
    # programs write row numbers into a first column, and a last delimiter, without a name
    is_numbered = len(header) > 1 and header[0] in ("", "Unnamed: 0")
    is_ended = len(header) > 1 and not header[-1]
    columns = header[is_numbered : len(header) - is_ended]
    data_cell = next((cell for cell in columns if is_image_name(cell)), None)
    if data_cell is not None:
        raise ValueError(
            f"{path} has no header: its first line has {short(data_cell)}; put a line with the"
            " names of the columns above it, such as file,labels"
        )
    _refuse_twice(path, columns)

    def read(wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        positions = [columns.index(name) + is_numbered for name in wanted]
        is_all = positions == list(range(len(header)))
        rows = itertools.islice(_csv_rows(path, data, delimiter), 1, None)
        for line, cells in rows:
            where = f"{path}, line {line}"
            if len(cells) != len(header):
                raise ValueError(
                    f"{where}: not as many fields as the header has ({len(cells)}, not"
                    f" {len(header)}); a text with a {_DELIMITERS[delimiter]} in it needs quotes"
                )
            if is_numbered and not cells[0].strip().isdecimal():
                raise ValueError(f"{where}: the first column has no name, and {cells[0]!r} in it")
            if is_ended and cells[-1].strip():
                raise ValueError(f"{where}: the last column has no name, and {cells[-1]!r} in it")
            yield line, cells if is_all else [cells[position] for position in positions]

    return _Opened(tuple(columns), "line", read)


def _refuse_twice(path: AnyPath, columns: Sequence[str]) -> None:
    if not all(columns):
        raise ValueError(f"{path} has a column without a name: {_list(columns)}")
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise ValueError(f"{path} has a column twice: {twice!r}")


def _delimiter(path: AnyPath, data: _Data) -> str:
    """What parts the columns: that by which the header has a column of images, and another."""
    head = next((line for line in _text(path, data) if line.strip()), "")
    names = {name.casefold() for name in (*FILE_COLUMNS, _OPEN_IMAGES[0])}
    fits = []
    for delimiter in _DELIMITERS:
        try:
            columns = [
                name.strip().casefold()
                for name in next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])
            ]
        except csv.Error:
            continue
        if len(columns) > 1 and names & set(columns):
            fits.append(delimiter)
    if len(fits) > 1:
        words = " or ".join(_DELIMITERS[one] for one in fits)
        raise ValueError(f"{path}: its columns may be parted by {words}; put names into quotes")
    return fits[0] if fits else ","


def _csv_rows(path: AnyPath, data: _Data, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, the header first, each with its line."""
    reader = csv.reader(_text(path, data), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _open_jsonl(path: AnyPath, data: _Data) -> _Opened:
    def records() -> Iterator[tuple[int, Mapping[str, object]]]:
        for number, line in enumerate(_text(path, data), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object: {line.strip()[:60]}")
            yield number, record

    first = next(records(), (0, {}))[1]
    columns = [name.strip() for name in first]
    _refuse_twice(path, columns)

    def read(wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        is_all = len(wanted) == len(columns)
        keys = [list(first)[columns.index(name)] for name in wanted]
        for line, record in records():
            cells = [record.get(key, _ABSENT) for key in keys]
            if is_all and len(record) > len(keys):
                cells.append(_ABSENT)  # it has a column that the first has not
            yield line, cells

    return _Opened(tuple(columns), "line", read)


def _open_parquet(path: AnyPath, data: _Data) -> _Opened:
    @contextmanager
    def damage_told() -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is not Parquet, or damaged: {reason}") from error

    def read(wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        number = 0
        keys = [names[columns.index(name)] for name in wanted]
        with data() as file, damage_told(), pq.ParquetFile(file) as table:
            size = 16 if is_heavy else 1024  # rows with whole images in them
            for batch in table.iter_batches(batch_size=size, columns=keys):
                parts: list[list[Any]] = [batch.column(key).to_pylist() for key in keys]
                for cells in zip(*parts, strict=True):
                    number += 1
                    yield number, cells

    with data() as file, damage_told(), pq.ParquetFile(file) as table:
        schema = table.schema_arrow
    names = [name for name in schema.names if name != _PANDAS_INDEX]
    columns = [name.strip() for name in names]
    _refuse_twice(path, columns)
    is_heavy = any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in schema.types)
    return _Opened(tuple(columns), "row", read)
