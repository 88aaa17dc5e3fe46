"""Images and labels in WebDataset tars: indexed once by their headers, then read by offset.

Nothing is unpacked to disk and nothing is unpickled.
"""

import glob
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from dclip.data.images import ImageError, read_image
from dclip.data.listing import Keyed, Sample, check_key, digest
from dclip.paths import RemotePath, as_path, is_remote, remote_errors

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Members that are images; a key has one of them."""

LABEL_SUFFIXES = ("json", "cls", "txt")
"""Members that hold labels; of several the first of these counts."""

_BLOCK = 512
_MAX_TARS = 100_000
_MAX_LABEL_BYTES = 1 << 20
_MAX_IMAGE_BYTES = 1 << 28
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, eq=False)
class WebdatasetListing(Keyed):
    """A split whose images lie in tars; each is read from its place in its tar.

    Attributes:
        split: As the user calls it.
        class_names: In the order of the label vector.
        tars: Paths or URLs.
        keys: Names of the members without suffix, ``-`` for ``/``.
        tar_of: Position in ``tars`` of each sample's tar.
        offsets: Byte at which each image begins in its tar.
        sizes: Bytes of each image.
        labels: Label vectors of all samples.
        name: The data set.
        notes: How it was read; see `Keyed`.
    """

    split: str
    class_names: tuple[str, ...]
    tars: tuple[str, ...]
    keys: tuple[str, ...] = field(repr=False)
    tar_of: Int32[np.ndarray, " images"] = field(repr=False)
    offsets: Int64[np.ndarray, " images"] = field(repr=False)
    sizes: Int64[np.ndarray, " images"] = field(repr=False)
    labels: UInt8[np.ndarray, "images classes"] = field(repr=False)
    name: str = "webdataset"
    notes: tuple[str, ...] = ()

    def read(self, index: int) -> Sample:
        """The image and its label vector.

        Raises:
            ImageError: If the tar is gone, was cut since it was listed, or the image cannot be
                decoded.
            OSError: If the tar cannot be read, or a remote store not be reached.
        """
        tar = self.tars[self.tar_of[index]]
        start, size = int(self.offsets[index]), int(self.sizes[index])
        where = f"image {self.keys[index]} of {tar}"
        if size > _MAX_IMAGE_BYTES:
            raise ImageError(f"{where} has {size} bytes, more than {_MAX_IMAGE_BYTES}")
        try:
            data = _read_range(tar, start, size)
        except FileNotFoundError as error:
            raise ImageError(f"cannot read {where}: {error.strerror}") from error
        if len(data) != size:
            raise ImageError(f"{where} is cut short: {len(data)} of {size} bytes are there")
        try:
            return Sample(read_image(data), self.labels[index])
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from error

    def identity(self) -> dict[str, str | int]:
        """Split, and a hash of class names, keys, labels and the images' places in the tars."""
        listed = [self.class_names, self.keys, [tar.rsplit("/", 1)[-1] for tar in self.tars]]
        content = digest(listed, self.labels, self.tar_of, self.offsets, self.sizes)
        return {"name": self.name, "split": self.split, "content": content}


def expand_tars(urls: str, split: str) -> tuple[str, ...]:
    """Paths or URLs of the tars a pattern stands for.

    Args:
        urls: ``{split}`` stands for the split, ``{000..003}`` for a range, ``{a,b}`` for a choice;
            ``*``, ``?`` and ``[]`` match local names, where a name is not there as it is written.
            ``http://``, ``https://``, ``s3://`` and ``gs://`` are read through fsspec.
        split: Replaces ``{split}``.

    Raises:
        ValueError: If a protocol is not one of these (``pipe:`` would run a program) or its package
            is missing, a range is empty, there are more than 100,000 tars, or no local file
            matches.

    Example:
        >>> expand_tars("s3://bucket/{split}-{08..10}.tar", "val")
        ('s3://bucket/val-08.tar', 's3://bucket/val-09.tar', 's3://bucket/val-10.tar')
    """
    place = as_path(urls.replace("{split}", split))
    pattern = str(place)
    tars = []
    for path in itertools.islice(_expand_braces(pattern), _MAX_TARS + 1):
        if not is_remote(place) and glob.has_magic(path):
            found = _matches(path)
            if not found:
                raise ValueError(f"no file matches {path}")
            tars += found
        else:
            tars.append(path)
    if len(tars) > _MAX_TARS:
        raise ValueError(f"{urls!r} stands for more than {_MAX_TARS} tars")
    if len(set(tars)) < len(tars):
        raise ValueError(f"{urls!r} names a tar twice")
    return tuple(tars)


def read_webdataset(
    tars: Sequence[str], split: str, class_names: Sequence[str]
) -> WebdatasetListing:
    """The samples of some tars, in the order they lie there.

    A sample is an image ``<key>.jpg`` (``.jpeg``, ``.png``, ``.webp``) and its labels in the same
    tar: ``<key>.json`` with ``{"labels": [...]}`` or a list, of class names or columns;
    ``<key>.cls`` with columns, separated by spaces; or ``<key>.txt`` with class names, one a line.
    Members of other kinds, and hidden ones, are passed over.

    Args:
        tars: Uncompressed, as from `expand_tars`.
        split: For the listing.
        class_names: In column order.

    Raises:
        ValueError: If a tar is missing, compressed, damaged or cut short; a key is unfit, or there
            twice; an image has no labels, or labels no image; a label is no class.
        OSError: If a remote store cannot be reached, or refuses.
    """
    column = {name: index for index, name in enumerate(class_names)}
    if not column or len(column) < len(class_names):
        raise ValueError(f"class names must be unique, and at least one: {list(class_names)}")
    keys: dict[str, str] = {}
    places: list[tuple[int, int, int]] = []
    positives: list[list[int]] = []
    for number, tar in enumerate(tars):
        images, labels = _index(tar)
        lonely = sorted(images.keys() ^ labels.keys())
        if lonely:
            what = "labels" if lonely[0] in images else "image"
            wanted = LABEL_SUFFIXES if what == "labels" else IMAGE_SUFFIXES
            raise ValueError(
                f"{tar}: {lonely[0]!r} has no {what} ({', '.join(wanted)}); so it is with"
                f" {len(lonely)} of {len(images.keys() | labels.keys())} keys"
            )
        for key, (offset, size) in images.items():
            if key in keys:
                raise ValueError(f"{tar}: key {key!r} is in {keys[key]} already")
            keys[key] = tar
            places.append((number, offset, size))
            suffix, data = labels[key]
            where = f"{tar}, {key}.{suffix}"
            positives.append(_columns(_parse_labels(suffix, data, where), column, where))
    if not keys:
        raise ValueError(f"no image in {', '.join(tars[:3])}{', ...' if len(tars) > 3 else ''}")
    vectors = np.zeros((len(keys), len(class_names)), np.uint8)
    for row, columns in enumerate(positives):
        vectors[row, columns] = 1
    table = np.array(places, np.int64)
    return WebdatasetListing(
        split=split,
        class_names=tuple(class_names),
        tars=tuple(tars),
        keys=tuple(keys),
        tar_of=table[:, 0].astype(np.int32),
        offsets=table[:, 1].copy(),
        sizes=table[:, 2].copy(),
        labels=vectors,
    )


def _matches(pattern: str) -> list[str]:
    """Local files that match, sorted; a part that is there as it is written is no pattern."""
    path = PurePath(pattern)
    parts = list(path.parts)
    for number, part in enumerate(parts):
        if glob.has_magic(part):
            if not Path(*path.parts[: number + 1]).exists():
                break
            parts[number] = glob.escape(part)
    return sorted(glob.glob(str(PurePath(*parts))))  # noqa: PTH207 - absolute or not


def _expand_braces(pattern: str) -> Iterator[str]:
    """Every string a pattern with ranges and choices stands for, lazily."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    before, inside, after = pattern[: braces.start()], braces[1], pattern[braces.end() :]
    bounds = _RANGE.fullmatch(inside)
    if bounds is None:
        if "," not in inside:
            raise ValueError(f"{{{inside}}} in {pattern!r} is neither a range 00..09 nor a choice")
        words: Iterator[str] = iter(inside.split(","))
    else:
        first, last = int(bounds[1]), int(bounds[2])
        if last < first:
            raise ValueError(f"range {{{inside}}} in {pattern!r} is empty")
        words = (f"{number:0{len(bounds[1])}d}" for number in range(first, last + 1))
    for word in words:
        for rest in _expand_braces(after):
            yield f"{before}{word}{rest}"


def _index(tar: str) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[str, bytes]]]:
    """Places of the images and contents of the labels of one tar, by key."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, tuple[str, bytes]] = {}
    path = as_path(tar)
    try:
        with path.open("rb") as file, remote_errors(path):
            for member in _members(file, tar):
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                suffix = suffix.lower()
                if not stem or suffix not in IMAGE_SUFFIXES + LABEL_SUFFIXES:
                    continue
                try:
                    key = check_key((folder + slash).replace("/", "-") + stem)
                except ValueError as error:
                    raise ValueError(f"{tar}: member {member.name!r}: {error}") from None
                if suffix in IMAGE_SUFFIXES:
                    if key in images:
                        raise ValueError(f"{tar}: key {key!r} has two images")
                    images[key] = (member.offset_data, member.size)
                    continue
                if key in labels and labels[key][0] == suffix:
                    raise ValueError(f"{tar}: {member.name!r} is there twice")
                if key in labels and _rank(labels[key][0]) < _rank(suffix):
                    continue
                if member.size > _MAX_LABEL_BYTES:
                    raise ValueError(f"{tar}: {member.name!r} has {member.size} bytes of labels")
                file.seek(member.offset_data)
                labels[key] = (suffix, file.read(member.size))
    except FileNotFoundError:
        raise ValueError(f"no tar {tar}") from None
    except (tarfile.TarError, OSError, MemoryError, OverflowError) as error:
        if isinstance(error, OSError) and is_remote(path):
            raise
        raise ValueError(
            f"cannot read {tar}: {error}; it must be a whole tar, not compressed"
        ) from error
    return images, labels


def _rank(suffix: str) -> int:
    return LABEL_SUFFIXES.index(suffix)


def _members(file: Any, tar: str) -> Iterator[tarfile.TarInfo]:
    """Plain files of an open tar (a file of Python's or fsspec's), whose end must be there."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        reached = -1
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all headers
            if archive.offset <= reached:
                raise ValueError(f"{tar} is damaged: its headers lead in a circle")
            reached = archive.offset
            if member.isreg() and not member.issparse():
                yield member
        # tarfile takes anything it does not understand for the end
        file.seek(archive.offset)
        end = file.read(_BLOCK)
        if end != bytes(_BLOCK):
            what = "cut short" if len(end) < _BLOCK else "damaged"
            raise ValueError(f"{tar} is {what}: no end mark at byte {archive.offset}")


def _parse_labels(suffix: str, data: bytes, where: str) -> list[Any]:
    """Class names or columns of one sample."""
    try:
        text = data.decode()
        if suffix == "cls":
            return [int(word) for word in text.split()]
        if suffix == "txt":
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error
    values = content.get("labels") if isinstance(content, dict) else content
    if not isinstance(values, list):
        raise ValueError(f"{where} must be a list, or have one under 'labels', not {text[:60]}")
    return values


def _columns(values: Sequence[Any], column: dict[str, int], where: str) -> list[int]:
    """Columns of class names or columns."""
    columns = []
    for value in values:
        is_column = isinstance(value, int) and not isinstance(value, bool)
        if is_column and 0 <= value < len(column):
            columns.append(value)
        elif isinstance(value, str) and value in column:
            columns.append(column[value])
        else:
            raise ValueError(f"{where}: {value!r} is none of the {len(column)} classes")
    return columns


def _read_range(tar: str, start: int, size: int) -> bytes:
    path = as_path(tar)
    if isinstance(path, RemotePath):
        return path.read_range(start, size)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)
