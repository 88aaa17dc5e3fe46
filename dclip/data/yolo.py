"""Objects in Ultralytics' format, as label vectors: one text file an image, one line an object."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dclip.data.images import is_image_name
from dclip.data.listing import ImageListing
from dclip.data.trees import Rest, find_below, list_folder, make_listing, names_below
from dclip.words import counted

FORMAT = "yolo"

_MAX_BYTES = 1 << 24
_MAX_DEPTH = 8


def read_yolo(
    folder: Path, split: str, places: Sequence[str], class_names: Mapping[int, str]
) -> ImageListing:
    """A split of a data set of Ultralytics' format, for detection, segmentation or poses.

    The labels of ``images/a/1.jpg`` are in ``labels/a/1.txt``: the last ``images`` of a path is
    replaced. A line is the number of a class and then numbers that say where the object is, which
    are not looked at. An image without a file, or with an empty one, has no class.

    Args:
        folder: Of the tree.
        split: Its name.
        places: Folders of images, or text files that list images, one a line; below ``folder``.
        class_names: By their numbers; columns ascend by number.

    Raises:
        ValueError: If a place is not there, a file of labels cannot be used (the message has its
            name and line), no image has any, or there is no image.
        OSError: If a file cannot be read.
    """
    rest = Rest()
    files = list(dict.fromkeys(file for place in places for file in _images(folder, place, rest)))
    numbers = sorted(class_names)
    column = {number: index for index, number in enumerate(numbers)}
    labels = np.zeros((len(files), len(column)), np.uint8)
    without = []
    for row, file in enumerate(files):
        text_file = folder / label_file(file)
        text = _read(text_file)
        if text is None:
            without.append(file)
        else:
            labels[row, _columns(text, text_file, column)] = 1
    if files and len(without) == len(files):
        raise ValueError(
            f"none of {counted(len(files), 'image')} of split {split!r} in {folder} has labels:"
            f" there is no {folder / label_file(files[0])}"
        )
    texts = {label_file(file) for file in files}
    rest.others = [path for path in rest.others if path not in texts]
    notes = [
        "an image has the classes of its objects; it counts as without the others",
        *_note(without, "image", "without a file of labels", "taken for background, without class"),
        *_note(_spare(files, folder), "file", "of labels without an image", "passed over"),
        *rest.notes(),
    ]
    return make_listing(folder, split, [class_names[n] for n in numbers], files, labels, notes)


def label_file(image: str) -> str:
    """Where the labels of an image are: in ``labels`` instead of the last ``images``.

    Example:
        >>> [label_file(image) for image in ("images/train/a.jpg", "train/images/a.b.png", "a.jpg")]
        ['labels/train/a.txt', 'train/labels/a.b.txt', 'a.txt']
    """
    before, found, after = f"/{image}".rpartition("/images/")
    path = f"{before}/labels/{after}" if found else f"/{image}"
    return f"{os.path.splitext(path[1:])[0]}.txt"  # noqa: PTH122 - ten times as fast


def yolo_sources(folder: Path, places: Sequence[str]) -> list[Path]:
    """Files and folders that a split follows from, as far as they are there.

    Args:
        folder: Of the tree.
        places: As for `read_yolo`.

    Raises:
        ValueError: If a place is not there.
        OSError: If a file cannot be read.
    """
    images = [image for place in places for image in _images(folder, place, Rest())]
    texts = [folder / label_file(image) for image in images]
    parents = {path.parent for path in texts} | {folder / place for place in _folders_of(images)}
    lists = [folder / place for place in places]
    return [path for path in (*lists, *sorted(parents), *texts) if path.exists()]


def _images(folder: Path, place: str, rest: Rest) -> list[str]:
    """Images in a folder and those below, or listed in a file; relative to the tree."""
    path = find_below(folder, place)
    if path is None:
        raise ValueError(f"no {place} in {folder}")
    if path.is_file():
        return _listed(folder, path)
    found = []
    ways = [(path, 0)]
    seen = set()
    while ways:
        way, depth = ways.pop()
        if way.resolve() in seen:
            continue
        seen.add(way.resolve())
        folders, images = list_folder(way, folder, rest)
        found += names_below(way, folder, images)
        if depth < _MAX_DEPTH:
            ways += [(way / name, depth + 1) for name in folders]
    return sorted(found)


def _listed(folder: Path, file: Path) -> list[str]:
    """Images that a text file lists: relative to it or to the tree, or absolute."""
    found = []
    is_below: dict[Path, bool] = {}
    for number, line in enumerate((_read(file) or "").splitlines(), start=1):
        place = line.strip().replace("\\", "/")
        if not place:
            continue
        for top in (file.parent, folder):
            path = Path(os.path.normpath(top / place))
            if path.parent not in is_below:
                is_below[path.parent] = find_below(folder, str(path.parent)) is not None
            is_inside = is_below[path.parent] and (
                find_below(folder, str(path)) if path.is_symlink() else path.is_file()
            )
            if is_inside and path.is_relative_to(folder) and is_image_name(path.name):
                found.append(path.relative_to(folder).as_posix())
                break
        else:
            raise ValueError(f"{file}, line {number}: {place[:80]!r} is no image in {folder}")
    return found


def _read(file: Path) -> str | None:
    """The text of a file; None if there is none."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{file} has more than {_MAX_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error


def _columns(text: str, file: Path, column: Mapping[int, int]) -> list[int]:
    """Columns of the classes that a file of labels has."""
    columns = set()
    for line, words in enumerate(map(str.split, text.splitlines()), start=1):
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)) or len(values) < 5 or values[0] % 1:
            raise ValueError(
                f"{file}, line {line}: not the number of a class and 4 numbers or more that say"
                f" where the object is: {' '.join(words)[:60]!r}"
            )
        if len(values) == 6:
            raise ValueError(
                f"{file}, line {line}: 5 numbers after the class are a box and a score; labels that"
                " a detector wrote are no annotations. Save them without scores if they are meant"
            )
        if values[0] not in column:
            raise ValueError(
                f"{file}, line {line}: class {words[0]} is none of the {len(column)} classes"
            )
        columns.add(column[int(values[0])])
    return sorted(columns)


def _spare(files: Sequence[str], folder: Path) -> list[str]:
    """Files of labels beside which there is no image."""
    spare = []
    for place in _folders_of(files):
        _, images = list_folder(folder / place, folder)
        texts = (folder / label_file(f"{place}/x".lstrip("/"))).parent
        stems = {"classes", *(PurePosixPath(image).stem for image in images)}
        found = texts.glob("*.txt") if texts.is_dir() and texts != folder / place else ()
        spare += [path for path in found if path.stem not in stems]
    return sorted(path.relative_to(folder).as_posix() for path in spare)


def _folders_of(files: Sequence[str]) -> list[str]:
    return sorted({file.rpartition("/")[0] for file in files})


def _note(files: Sequence[str], what: str, how: str, taken: str) -> list[str]:
    if not files:
        return []
    return [f"{counted(len(files), what)} {how}, such as {ascii(files[0])[1:-1]}: {taken}"]
