"""Open Images' image-level labels: names of its classes, and where images of a split lie."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from dclip.data.image_files import is_there
from dclip.store.paths import AnyPath, RemotePath, has_folders

_HEAD_BYTES = 4096
_CLASS_ID = re.compile(r"/[a-z]/[a-z0-9_]+")
_WORDS = re.compile(r"[^A-Za-z0-9]+")
_SPLITS = ("train", "validation", "val", "test")
_IMAGES_TO_TRY = 20


def read_descriptions(files: Sequence[AnyPath]) -> dict[str, str]:
    """Names of classes by their ids (``/m/01g317``), from all files of descriptions among some.

    Such a file has lines ``/m/01g317,Person``, under a header ``LabelName,DisplayName`` or none.

    Raises:
        ValueError: If a line is of another kind, or an id has two names.
        OSError: If a file cannot be read.
    """
    names: dict[str, str] = {}
    for path in files:
        if not is_descriptions(path):
            continue
        try:
            rows = list(csv.reader(path.read_bytes().decode("utf-8-sig").splitlines(), strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        for number, row in enumerate(rows, start=1):
            if not row or (number == 1 and row[0] == "LabelName"):
                continue
            if len(row) != 2 or not _CLASS_ID.fullmatch(row[0]) or not row[1].strip():
                raise ValueError(f"{path}, line {number}: not an id and a name: {row[:3]}")
            name = row[1].strip()
            if names.setdefault(row[0], name) != name:
                raise ValueError(
                    f"{path}, line {number}: {row[0]!r} is {name!r} here and {names[row[0]]!r} in"
                    " another line or file"
                )
    return names


def is_descriptions(path: AnyPath) -> bool:
    """Whether a file says what classes are called, by its first line."""
    if path.suffix.lower() != ".csv":
        return False
    if isinstance(path, RemotePath):
        head = path.read_range(0, _HEAD_BYTES)
    else:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    first = head.decode("utf-8-sig", "replace").partition("\n")[0].strip()
    return first == "LabelName,DisplayName" or _CLASS_ID.fullmatch(first.split(",")[0]) is not None


def display_names(ids: Sequence[str], names: Mapping[str, str], table: AnyPath) -> list[str]:
    """What classes are called; where two are called the same, with their ids.

    Raises:
        ValueError: If an id has no name.
    """
    nameless = [one for one in ids if one not in names]
    if nameless:
        raise ValueError(
            f"{table}: no name of class {nameless[0]!r} ({len(nameless):,} of {len(ids):,} have"
            " none); put Open Images' class descriptions (LabelName,DisplayName) beside the table"
        )
    called = [names[one] for one in ids]
    times = Counter(called)
    return [
        f"{name} ({one})" if times[name] > 1 else name
        for one, name in zip(ids, called, strict=True)
    ]


def split_of(path: AnyPath) -> str | None:
    """The split in a published file's name: ``train`` of ``oidv6-train-annotations-....csv``."""
    words = [word.casefold() for word in _WORDS.split(path.stem)]
    return next((split for split in _SPLITS if split in words), None)


def find_images(folder: AnyPath, split: str, ids: Sequence[str]) -> str:
    """Where the images ``<id>.jpg`` lie, relative to the folder: ``""`` or a path with a slash."""
    places = (f"{split}/", "", f"images/{split}/", "images/", f"{split}/data/", "data/")
    for place in places:
        if has_folders(folder) and place and not (folder / place.rstrip("/")).is_dir():
            continue
        if any(is_there(folder / f"{place}{one}.jpg") for one in ids[:_IMAGES_TO_TRY]):
            return place
    return ""
