"""Choices that were made in Label Studio, from its exports JSON, JSON-MIN and CSV."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from dclip.data.folder import CLASS_NAMES_FILE
from dclip.data.images import is_image_name
from dclip.data.listing import ImageListing
from dclip.data.trees import (
    ONE_SPLIT,
    Tree,
    find_below,
    in_split_order,
    make_listing,
    settle_class_names,
    split_kind,
)
from dclip.words import counted

FORMAT = "label-studio"

_MAX_BYTES = 1 << 29
_HEAD_BYTES = 1 << 16
_ABOUT = frozenset(
    ("id", "annotation_id", "annotator", "created_at", "updated_at", "lead_time", "agreement")
)
_EXPORT_COCO = "export it as COCO, and give that file to --dataset"


class _Answer(NamedTuple):
    """What one person said of one image; no labels where the task was skipped."""

    where: str
    image: str
    labels: tuple[str, ...] | None


def find_label_studio(folder: Path) -> Tree | None:
    """The exports of Label Studio that lie in a folder.

    An export whose name has train, val or test in it is that split; one of another name is the one
    split, ``train``.

    Raises:
        ValueError: If there are several, and their names do not tell which split each is.
        OSError: If a file cannot be read.
    """
    files = sorted(path for path in folder.iterdir() if is_export(path))
    if not files:
        return None
    splits = {split_kind(path.stem) or "": path for path in files}
    if len(files) == 1:
        splits = {split_kind(files[0].stem) or ONE_SPLIT: files[0]}
    elif "" in splits or len(splits) < len(files):
        names = " and ".join(path.name for path in files)
        raise ValueError(
            f"{folder} has the exports {names}; keep one, or call them train, val and test"
        )
    names_file = folder / CLASS_NAMES_FILE
    return Tree(
        FORMAT,
        f"{files[0].name}, an export of Label Studio",
        in_split_order(list(splits)),
        lambda split: read_label_studio(folder, split, splits),
        lambda: [folder, *files, *([names_file] if names_file.is_file() else [])],
    )


def is_export(path: Path) -> bool:
    """Whether a file begins as an export of Label Studio does.

    Raises:
        OSError: If it cannot be read.
    """
    if (
        path.suffix.lower() not in (".json", ".csv")
        or path.name.startswith(".")
        or not path.is_file()
    ):
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace").lstrip()
    if path.suffix.lower() == ".csv":
        columns = set(head.partition("\n")[0].replace('"', "").strip().split(","))
        return {"annotation_id", "lead_time"} <= columns
    has = [f'"{key}"' in head for key in ("annotation_id", "lead_time", "annotations", "data")]
    return head.startswith("[") and (all(has[:2]) or all(has[2:]))


def read_label_studio(folder: Path, split: str, exports: Mapping[str, Path]) -> ImageListing:
    """A split of images with the choices that were made for them.

    Images are looked for in the folder, and in ``images`` there: by the path that the export has,
    without as many of its first parts as it takes, and without the 8 characters that Label Studio
    puts before the name of an upload. Tasks without an answer are left out.

    Args:
        folder: Of the images.
        split: One of ``exports``.
        exports: The export of each split; classes are those of all of them.

    Raises:
        ValueError: If an export cannot be read, has anything else than choices, several questions,
            or several answers for one image that differ; or no image is there.
        OSError: If a file cannot be read.
    """
    answers = {name: list(_answers(path)) for name, path in exports.items()}
    found = {label for each in answers.values() for one in each for label in one.labels or ()}
    class_names, notes = settle_class_names(folder, sorted(found))
    column = {name: index for index, name in enumerate(class_names)}
    told: dict[str, _Answer] = {}
    skipped = [one for one in answers[split] if one.labels is None]
    for one in answers[split]:
        before = told.get(one.image)
        if one.labels is None:
            continue
        if before is not None and set(before.labels or ()) != set(one.labels):
            raise ValueError(
                f"{one.where}: {one.image!r} has another answer in {before.where}; keep one answer"
                " an image"
            )
        told.setdefault(one.image, one)
    places = {image: _find_image(folder, image) for image in told}
    missing = [image for image, place in places.items() if place is None]
    if told and len(missing) == len(told):
        raise ValueError(
            f"none of {counted(len(told), 'image')} of {exports[split]} is in {folder}, such as"
            f" {missing[0]!r}; put them there, or into {folder / 'images'}"
        )
    images: dict[str, str] = {}
    for image, place in places.items():
        file = place or _parts(image)[-1]
        if file in images:
            raise ValueError(
                f"{told[image].where}: {image!r} and {images[file]!r} are both {file!r} in {folder}"
            )
        images[file] = image
    labels = np.zeros((len(images), len(class_names)), np.uint8)
    for row, image in enumerate(images.values()):
        labels[row, [column[label] for label in told[image].labels or ()]] = 1
    more = ["an image has the classes that were chosen; it counts as without the others"]
    if skipped:
        more.append(
            f"{counted(len(skipped), 'task')} without an answer, such as"
            f" {skipped[0].image!r}: passed over"
        )
    return make_listing(folder, split, class_names, list(images), labels, [*notes, *more])


def _answers(path: Path) -> Iterator[_Answer]:
    """The answers of an export, of whatever kind."""
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows: Any = list(csv.DictReader(StringIO(text, newline=""), strict=True))
        else:
            rows = json.loads(text)
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is not a list of tasks")
    if rows and "annotations" in rows[0]:
        yield from _of_tasks(path, rows)
    else:
        yield from _of_rows(path, rows)


def _of_tasks(path: Path, tasks: Sequence[Mapping[str, Any]]) -> Iterator[_Answer]:
    """Answers of the export JSON: all annotations of each task."""
    asked: set[str] = set()
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {task.get('id', number)}"
        data, annotations = task.get("data"), task.get("annotations")
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise ValueError(f"{where}: no 'data' or 'annotations'")
        image = _image_of(data, where)
        valid = [
            one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")
        ]
        if not valid:
            yield _Answer(where, image, None)
        for annotation in valid:
            chosen: list[str] = []
            for result in annotation.get("result") or []:
                kind = result.get("type") if isinstance(result, dict) else None
                if kind != "choices":
                    raise ValueError(
                        f"{where}: has {str(kind)[:40]!r}, and only choices are labels of an image;"
                        f" objects: {_EXPORT_COCO}"
                    )
                asked.add(str(result.get("from_name")))
                chosen += _choices(result.get("value"), where)
            _refuse_two_questions(asked, where)
            yield _Answer(where, image, tuple(chosen))


def _of_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[_Answer]:
    """Answers of the exports JSON-MIN and CSV: one row an answer."""
    asked: set[str] = set()
    unit = "line" if path.suffix.lower() == ".csv" else "task"
    for number, row in enumerate(rows, start=2 if unit == "line" else 1):
        where = f"{path}, {unit} {number if unit == 'line' else row.get('id', number)}"
        if None in row or (None in row.values() and unit == "line"):
            raise ValueError(f"{where}: not as many fields as the header has")
        rest = {key: value for key, value in row.items() if key not in _ABOUT}
        image = _image_of(rest, where)
        answers = {key: value for key, value in rest.items() if value not in (image, "", None)}
        asked |= answers.keys()
        _refuse_two_questions(asked, where)
        chosen = [label for value in answers.values() for label in _choices(value, where)]
        yield _Answer(where, image, tuple(chosen))


def _refuse_two_questions(asked: set[str], where: str) -> None:
    if len(asked) > 1:
        raise ValueError(
            f"{where}: {' and '.join(map(repr, sorted(asked)))} may each be the labels; keep one of"
            " them in the export"
        )


def _image_of(data: Mapping[str, Any], where: str) -> str:
    """The one value that names an image."""
    found = [v for v in data.values() if isinstance(v, str) and is_image_name(_parts(v)[-1])]
    if len(found) != 1:
        raise ValueError(f"{where}: {'several images' if found else 'no image'} in {list(data)}")
    return found[0]


def _choices(value: Any, where: str) -> list[str]:
    """Class names in an answer: one, or ``{"choices": [...]}``, as JSON text too."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {value[:60]!r}: {error}") from error
    names = value.get("choices") if isinstance(value, dict) else value
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(
            f"{where}: {str(value)[:60]} is no choice; only choices are labels of an image;"
            f" objects: {_EXPORT_COCO}"
        )
    return [name.strip() for name in names]


def _parts(image: str) -> list[str]:
    """Folders and name in what Label Studio has for an image: a path or a URL."""
    parts = urlsplit(image.replace("\\", "/"))
    place = parse_qs(parts.query).get("d", [""])[0] if "local-files" in parts.path else ""
    path = place or (unquote(parts.path) if "://" in image else parts.path)
    return [part for part in path.split("/") if part not in ("", ".", "..")] or [""]


def _find_image(folder: Path, image: str) -> str | None:
    """Where an image lies below a folder."""
    parts = _parts(image)
    plain = re.sub(r"^[0-9a-f]{8}-", "", parts[-1])
    for name in dict.fromkeys((parts[-1], plain)):
        for first in range(len(parts)):
            place = "/".join([*parts[first:-1], name])
            for way in (place, f"images/{place}"):
                path = find_below(folder, way)
                if path is not None and path.is_file():
                    return way
    return None
