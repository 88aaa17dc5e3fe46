"""Images and labels in WebDataset tars: indexed once by their headers, then read by offset.

Nothing is unpacked to disk and nothing is unpickled.
"""

import glob
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int8, Int32, Int64, UInt8

from dclip.data.images import IMAGE_SUFFIXES, ImageError, read_image
from dclip.data.listing import Keyed, Sample, check_key, digest, is_key
from dclip.store.paths import RemotePath, as_path, is_remote, remote_errors
from dclip.words import counted

LABEL_SUFFIXES = (".json", ".cls", ".txt")
"""Members that hold labels; of several the first of these counts."""

NumbersAs: TypeAlias = Literal["columns", "vectors"]
"""What a list of numbers is: columns counted from 0, or a place for each class with 0, 1 or -1."""

# Of two images with one key, one in these formats counts before one in another.
_PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp")
_BLOCK = 512
_MAX_TARS = 100_000
_MAX_LABEL_BYTES = 1 << 20
_MAX_IMAGE_BYTES = 1 << 28
_MAX_KINDS = 8
_NOUNS = ("folder", "link", "special file")
_MAX_SHOWN = 60
_BRACES = re.compile(r"\{([^{}]*)\}")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, eq=False)
class WebdatasetListing(Keyed):
    """A split whose images lie in tars; each is read from its place in its tar.

    Attributes:
        split: As the user calls it.
        class_names: In the order of the label vector.
        tars: Paths or URLs.
        keys: Names of the members without suffix, ``-`` for ``/``; with a hash where a name has
            other characters than a key.
        tar_of: Position in ``tars`` of each sample's tar.
        offsets: Byte at which each image begins in its tar.
        sizes: Bytes of each image.
        labels: Label vectors of all samples: 1, 0, or -1 for unknown.
        name: The data set.
        notes: How it was read; see `Keyed`.
        options: Settings that made the listing, for its identity.
    """

    split: str
    class_names: tuple[str, ...]
    tars: tuple[str, ...]
    keys: tuple[str, ...] = field(repr=False)
    tar_of: Int32[np.ndarray, " images"] = field(repr=False)
    offsets: Int64[np.ndarray, " images"] = field(repr=False)
    sizes: Int64[np.ndarray, " images"] = field(repr=False)
    labels: UInt8[np.ndarray, "images classes"] | Int8[np.ndarray, "images classes"] = field(
        repr=False
    )
    name: str = "webdataset"
    notes: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

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
        """Split, options, and a hash of class names, keys, labels and places in the tars."""
        listed = [self.class_names, self.keys, [tar.rsplit("/", 1)[-1] for tar in self.tars]]
        content = digest(listed, self.labels, self.tar_of, self.offsets, self.sizes)
        return {"name": self.name, "split": self.split, **self.options, "content": content}

    def images_digest(self, count: int) -> str:
        """A hash of the keys and places of the first images, whatever their labels."""
        where = (self.tar_of[:count], self.offsets[:count], self.sizes[:count])
        return digest([self.keys[:count], self.tars], *where)


def expand_tars(urls: str, split: str) -> tuple[str, ...]:
    """Paths or URLs of the tars a pattern stands for.

    Args:
        urls: ``{split}`` stands for the split, ``{000..003}`` for a range, ``{a,b}`` for a choice;
            ``*``, ``?`` and ``[]`` match local names. A file that is there as it is written is that
            file, and so are the folders a pattern begins with. ``http://``, ``https://``, ``s3://``
            and ``gs://`` are read through fsspec.
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
    folder, pattern = ("", str(place)) if is_remote(place) else _split_pattern(str(place))
    tars = []
    for name in itertools.islice(_expand_braces(pattern), _MAX_TARS + 1):
        path = folder + name
        if is_remote(place) or not glob.has_magic(path) or Path(path).is_file():
            tars.append(path)
            continue
        found = _matches(path)
        if not found:
            raise ValueError(f"no file matches {path}")
        tars += found
    if len(tars) > _MAX_TARS:
        raise ValueError(f"{urls!r} stands for more than {_MAX_TARS} tars")
    if len(set(tars)) < len(tars):
        raise ValueError(f"{urls!r} names a tar twice")
    return tuple(tars)


def read_webdataset(
    tars: Sequence[str],
    split: str,
    class_names: Sequence[str],
    *,
    numbers_as: NumbersAs | None = None,
) -> WebdatasetListing:
    """The samples of some tars, in the order they lie there.

    A sample is an image ``<key>.jpg`` (or another of `dclip.data.images.IMAGE_SUFFIXES`) and its
    labels in the same tar: ``<key>.json`` with a list, or ``{"labels": [...], "unknown": [...]}``;
    ``<key>.cls`` with numbers, separated by spaces; or ``<key>.txt`` with class names, one a line.
    Labels are class names, columns counted from 0, or a vector as long as the class list with 1, 0
    and -1 for unknown; what is listed under ``unknown`` is -1 as well.

    Which of the two the numbers are is decided for all tars together. With one or two classes it
    can stay open: ``[0, 1]`` may be both classes or the second alone.

    WebDataset itself ends a key at the first dot. A key may have dots here, where image and labels
    have the same one; else parts such as ``<key>.mask.png`` belong to ``<key>``, and are passed
    over where there is a ``<key>.jpg``. Members of other kinds, hidden ones, folders and links are
    passed over; `Keyed.notes` counts them.

    Args:
        tars: Uncompressed, as from `expand_tars`.
        split: For the listing.
        class_names: In column order.
        numbers_as: What lists of numbers are; None to tell from the numbers.

    Raises:
        ValueError: If a tar is missing, compressed, damaged or cut short; a key is unfit, or there
            twice; an image has no labels, or labels no image; a label is no class; numbers are
            neither columns nor vectors, some are columns and others vectors, or all may be either.
        OSError: If a remote store cannot be reached, or refuses.
    """
    column = {name: index for index, name in enumerate(class_names)}
    if not column or len(column) < len(class_names):
        raise ValueError(f"class names must be unique, and at least one: {list(class_names)}")
    keys: dict[str, str] = {}
    places: list[tuple[int, int, int]] = []
    told: list[_Told] = []
    rest = _Rest()
    for number, tar in enumerate(tars):
        for sample in _samples(tar, rest):
            if sample.key in keys:
                raise ValueError(f"{tar}: key {sample.key!r} is in {keys[sample.key]} already")
            keys[sample.key] = tar
            places.append((number, sample.image.offset, sample.image.size))
            told.append(_parse(sample.labels, f"{tar}, {sample.labels.name}", column, rest))
    if not keys:
        where = f"{', '.join(tars[:3])}{', ...' if len(tars) > 3 else ''}"
        raise ValueError(f"no image in {where}: {rest.example()}")
    vectors, how = _vectors(told, len(column), numbers_as)
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
        notes=(*how, *rest.notes()),
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


def _split_pattern(pattern: str) -> tuple[str, str]:
    """The part of a local pattern that exists as it stands, and the rest, which is to be matched.

    The part ends with ``/``, or is all of it.
    """
    if Path(pattern).is_file():
        return pattern, ""
    folder, rest = "", pattern
    while "/" in rest:
        part, _, after = rest.partition("/")
        if not Path(f"{folder}{part}/").is_dir():
            break
        folder, rest = f"{folder}{part}/", after
    return folder, rest


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


class _Member(NamedTuple):
    """An image or labels in a tar, and of labels what they hold."""

    name: str
    suffix: str
    offset: int
    size: int
    data: bytes = b""


class _Sample(NamedTuple):
    """An image and its labels."""

    key: str
    image: _Member
    labels: _Member


@dataclass
class _Parts:
    """The members of one name without suffix."""

    image: _Member | None = None
    labels: _Member | None = None


class _Rest:
    """What else than plain pairs there is in some tars: counted by kind, one of each named."""

    def __init__(self) -> None:
        self.passed_over: dict[str, list[Any]] = {}
        self.dotted: list[str] = []
        self.pairs: list[str] = []
        self.keys: dict[str, str] = {}

    def pass_over(self, kind: str, name: str) -> None:
        """Count a member that is not read."""
        self.passed_over.setdefault(kind, [0, name])[0] += 1

    def example(self) -> str:
        """How many members are not read, and one of them."""
        if not self.passed_over:
            return "no member at all"
        kind, (_, name) = next(iter(self.passed_over.items()))
        return f"{self._count()} passed over, such as {name!r} ({kind.removeprefix('.')})"

    def notes(self) -> Iterator[str]:
        """A sentence for each thing to know."""
        if self.dotted:
            yield (
                f"{counted(len(self.dotted), 'key')} with a dot, such as {self.dotted[0]!r}: taken"
                " for an image of its own, since image and labels have the same name"
            )
        if self.pairs:
            yield (
                f"{counted(len(self.pairs), 'image')} with labels of another name, such as"
                f" {self.pairs[0]}: paired by the name up to its first dot"
            )
        if self.keys:
            names = [name[:_MAX_SHOWN] for name in self.keys]
            others = f" and {len(names) - _MAX_KINDS:,} more" if len(names) > _MAX_KINDS else ""
            yield (
                "of labels in JSON 'labels' and 'unknown' alone are looked at, not"
                f" {', '.join(map(repr, names[:_MAX_KINDS]))}{others}"
            )
        if self.passed_over:
            most = sorted(self.passed_over.items(), key=lambda item: -item[1][0])
            kinds = [
                f"{counted(count, kind) if kind in _NOUNS else f'{count:,} {kind}'} ({name})"
                for kind, (count, name) in most[:_MAX_KINDS]
            ]
            more = len(most) - len(kinds)
            kinds += [f"{counted(more, 'more kind')}"] if more else []
            yield f"{self._count()} passed over: {', '.join(kinds)}"

    def _count(self) -> str:
        return counted(sum(count for count, _ in self.passed_over.values()), "member")


def _samples(tar: str, rest: _Rest) -> list[_Sample]:
    """The samples of one tar, in the order of its images.

    Names are grouped as WebDataset does, up to the first dot. In a group, image and labels of one
    name are a sample.
    """
    samples: list[_Sample] = []
    lonely: dict[str, str] = {}
    groups = _index(tar, rest)
    for short, group in groups.items():
        whole = {name for name, parts in group.items() if parts.image and parts.labels}
        images = [parts.image for parts in group.values() if parts.image]
        labels = [parts.labels for parts in group.values() if parts.labels]
        if not whole and len(images) == len(labels) == 1:
            samples.append(_Sample(key_of_name(short, short, tar), images[0], labels[0]))
            rest.pairs.append(f"{images[0].name!r} and {labels[0].name!r}")
            continue
        if not whole and images and labels:
            named = ", ".join(repr(member.name) for member in [*images, *labels][:_MAX_KINDS])
            raise ValueError(
                f"{tar}: which labels are of which image? {named} are one key to WebDataset; name"
                " an image and its labels alike, up to the suffix"
            )
        for name, parts in group.items():
            if parts.image and parts.labels:
                samples.append(_Sample(key_of_name(name, short, tar), parts.image, parts.labels))
                if name != short:
                    rest.dotted.append(name)
            elif short in whole or (name != short and not parts.image):
                for member in (parts.image, parts.labels):
                    if member is not None:
                        rest.pass_over(f"{member.suffix} of other keys", member.name)
            else:
                lonely[name] = "labels" if parts.image else "image"
    if lonely:
        name = min(lonely)
        suffixes = LABEL_SUFFIXES if lonely[name] == "labels" else IMAGE_SUFFIXES
        wanted = ", ".join(suffix[1:] for suffix in suffixes)
        raise ValueError(
            f"{tar}: {name!r} has no {lonely[name]} ({wanted}); so it is with"
            f" {len(lonely)} of {len(lonely) + len(samples)} keys"
        )
    return sorted(samples, key=lambda sample: sample.image.offset)


def key_of_name(name: str, short: str, tar: str) -> str:
    """The key of a name without suffix; with a hash where a character had to go, to be unique."""
    plain = name.replace("/", "-")
    try:
        if ".." in name.split("/") or not short.rpartition("/")[2]:
            return check_key(name)
        if name == short and is_key(plain):
            return plain
        mark = sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        return f"{_UNFIT.sub('-', plain.replace('.', '-'))[-100:]}-{mark}"
    except ValueError as error:
        raise ValueError(f"{tar}: member {name!r}: {error}") from None


def _index(tar: str, rest: _Rest) -> dict[str, dict[str, _Parts]]:
    """Images and labels of one tar, by name up to the first dot, and by name without suffix."""
    groups: dict[str, dict[str, _Parts]] = {}
    for about, data in walk_tar(tar, LABEL_SUFFIXES):
        name = about.name.removeprefix("./")
        kind = kind_of(about, name)
        short, name_only, suffix = split_name(name)
        if kind is not None:
            rest.pass_over(kind, about.name)
            continue
        parts = groups.setdefault(short, {}).setdefault(name_only, _Parts())
        member = _Member(about.name, suffix, about.offset_data, about.size)
        if suffix in IMAGE_SUFFIXES:
            _add_image(parts, member, tar, rest)
        else:
            _add_labels(parts, member._replace(data=data), tar, rest)
    return groups


def walk_tar(tar: str, suffixes: Sequence[str]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Members of a tar, one after another, with what is in those that are of some kinds.

    Args:
        tar: Path or URL.
        suffixes: Of the members that are read, in lower case. `kind_of` says which others are none.

    Raises:
        ValueError: It is missing, compressed, damaged or cut short, or a member to be read is
            large.
        OSError: If a remote store cannot be reached, or refuses.
    """
    path = as_path(tar)
    try:
        with path.open("rb") as file, remote_errors(path):
            for about in _members(file, tar):
                data = b""
                name = about.name.removeprefix("./")
                if split_name(name)[2] in suffixes and kind_of(about, name) is None:
                    if about.size > _MAX_LABEL_BYTES:
                        raise ValueError(f"{tar}: {about.name!r} has {about.size} bytes of labels")
                    file.seek(about.offset_data)
                    data = file.read(about.size)
                yield about, data
    except FileNotFoundError:
        raise ValueError(f"no tar {tar}") from None
    except (tarfile.TarError, OSError, MemoryError, OverflowError) as error:
        if isinstance(error, OSError) and is_remote(path):
            raise
        raise ValueError(
            f"cannot read {tar}: {error}; it must be a whole tar, not compressed"
        ) from error


def split_name(name: str) -> tuple[str, str, str]:
    """Up to the first dot of the last part, without suffix, and the suffix in lower case.

    WebDataset takes all after the first dot for the suffix; here that is a key with a dot.

    Example:
        >>> split_name("a/b.jpg"), split_name("a/b.v1.JPG")
        (('a/b', 'a/b', '.jpg'), ('a/b', 'a/b.v1', '.jpg'))
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".") if "." in base else (base, "", "")
    short = base.partition(".")[0]
    return f"{folder}{slash}{short}", f"{folder}{slash}{stem}", f"{dot}{suffix}".lower()


def kind_of(about: tarfile.TarInfo, name: str) -> str | None:
    """What a member is, where it is neither image nor labels; None where it is one of these."""
    if about.isdir():
        return "folder"
    if not about.isreg() or about.issparse():
        return "link" if about.issym() or about.islnk() else "special file"
    if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
        return "hidden"
    suffix = split_name(name)[2]
    return None if suffix in (*IMAGE_SUFFIXES, *LABEL_SUFFIXES) else suffix or "without suffix"


def _add_image(parts: _Parts, member: _Member, tar: str, rest: _Rest) -> None:
    """Keep the one image of a name; one in a format of photographs counts before others."""
    other = parts.image
    if other is None:
        parts.image = member
        return
    is_photograph = [image.suffix in _PHOTOGRAPHS for image in (other, member)]
    if is_photograph[0] == is_photograph[1]:
        raise ValueError(
            f"{tar}: key {split_name(member.name)[1]!r} has two images, {other.name!r} and"
            f" {member.name!r}"
        )
    parts.image, left = (other, member) if is_photograph[0] else (member, other)
    rest.pass_over(f"{left.suffix} beside {parts.image.suffix}", left.name)


def _add_labels(parts: _Parts, member: _Member, tar: str, rest: _Rest) -> None:
    """Keep those labels of a name that count first."""
    other = parts.labels
    if other is None:
        parts.labels = member
        return
    if other.suffix == member.suffix:
        raise ValueError(f"{tar}: {member.name!r} is there twice")
    first, left = sorted((other, member), key=lambda one: LABEL_SUFFIXES.index(one.suffix))
    parts.labels = first
    rest.pass_over(f"{left.suffix} beside {first.suffix}", left.name)


def _members(file: Any, tar: str) -> Iterator[tarfile.TarInfo]:
    """Members of an open tar (a file of Python's or fsspec's), whose end must be there."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        reached = -1
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all headers
            if archive.offset <= reached:
                raise ValueError(f"{tar} is damaged: its headers lead in a circle")
            reached = archive.offset
            yield member
        # tarfile takes anything it does not understand for the end
        file.seek(archive.offset)
        end = file.read(_BLOCK)
        if end != bytes(_BLOCK):
            what = "cut short" if len(end) < _BLOCK else "damaged"
            raise ValueError(f"{tar} is {what}: no end mark at byte {archive.offset}")


class _Told(NamedTuple):
    """What the labels of one sample say; numbers may be columns, a vector, or either."""

    where: str
    shown: str
    is_numbers: bool
    columns: list[int] | None
    unknown: list[int]
    vector: Int8[np.ndarray, " classes"] | None


def _parse(member: _Member, where: str, column: Mapping[str, int], rest: _Rest) -> _Told:
    """The labels of one sample, read in every way they can be.

    Raises:
        ValueError: There is no such way.
    """
    values, unknown = _values(member, where, rest)
    shown = str(values) if len(str(values)) <= _MAX_SHOWN else f"{str(values)[:_MAX_SHOWN]}..."
    is_numbers = member.suffix != ".txt" and not any(isinstance(v, str) for v in values)
    columns: list[int] | None = None
    vector = None
    if (
        is_numbers
        and len(values) == len(column)
        and all(isinstance(value, int | float) and value in (0, 1, -1) for value in values)
    ):
        vector = np.array(values, np.int8)
    may_be_columns = all(type(v) is int and 0 <= v < len(column) for v in values)
    if vector is None or (may_be_columns and len(set(values)) == len(values)):
        columns = _columns(values, column, where)
    left_open = _columns(unknown, column, f"{where}, 'unknown'")
    both = set(columns or ()) & set(left_open)
    if both:
        raise ValueError(f"{where}: column {min(both)} is both among the labels and unknown")
    return _Told(where, shown, is_numbers, columns, left_open, vector)


def _values(member: _Member, where: str, rest: _Rest) -> tuple[list[Any], list[Any]]:
    """Labels of one sample as they are written, and what is unknown."""
    try:
        text = member.data.decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error
    if member.suffix == ".cls":
        words = text.replace(",", " ").strip(" \r\n[]").split()
        return [_number(word, where) for word in words], []
    if member.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()], []
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    for key in content if isinstance(content, dict) else ():
        if key not in ("labels", "unknown"):
            rest.keys.setdefault(key, where)
    values = content.get("labels") if isinstance(content, dict) else content
    unknown = content.get("unknown") if isinstance(content, dict) else None
    if not isinstance(values, list):
        raise ValueError(f"{where} must be a list, or have one under 'labels', not {text[:60]}")
    if not isinstance(unknown, list | None):
        raise ValueError(f"{where}: 'unknown' must be a list, not {str(unknown)[:60]}")
    return values, unknown or []


def _number(word: str, where: str) -> int | float:
    for read in (int, float):
        with suppress(ValueError):
            return read(word)
    raise ValueError(
        f"{where}: {word[:_MAX_SHOWN]!r} is no number; class names go into .txt, one a line, or"
        " into .json"
    )


def _columns(values: Sequence[Any], column: Mapping[str, int], where: str) -> list[int]:
    """Columns of class names or columns.

    Raises:
        ValueError: One is no class, or a column is there twice.
    """
    columns = []
    for value in values:
        is_column = isinstance(value, int) and not isinstance(value, bool)
        if is_column and 0 <= value < len(column):
            columns.append(value)
        elif isinstance(value, str) and value in column:
            columns.append(column[value])
        else:
            raise ValueError(
                f"{where}: {'null' if value is None else repr(value)} is none of the"
                f" {counted(len(column), 'class', 'classes')}"
            )
    numbers = [value for value in values if not isinstance(value, str)]
    if len(set(numbers)) < len(numbers):
        twice = next(value for value in numbers if numbers.count(value) > 1)
        raise ValueError(
            f"{where}: column {twice} is there twice; a vector of 0, 1 and -1 would have"
            f" {len(column)} numbers, one a class, not {len(numbers)}"
        )
    return columns


def _vectors(
    told: Sequence[_Told], classes: int, numbers_as: NumbersAs | None
) -> tuple[UInt8[np.ndarray, "images classes"] | Int8[np.ndarray, "images classes"], list[str]]:
    """Label vectors of all samples, and a sentence on how numbers were read, if there are any."""
    numbers = [one for one in told if one.is_numbers]
    no_vector = next((one for one in numbers if one.vector is None), None)
    no_columns = next((one for one in numbers if one.columns is None), None)
    size = counted(classes, "number")
    if numbers_as is not None:
        wrong = no_columns if numbers_as == "columns" else no_vector
        if wrong is not None:
            what = (
                "list of columns" if numbers_as == "columns" else f"vector of {size} (0, 1 or -1)"
            )
            raise ValueError(
                f"{wrong.where}: {wrong.shown} is no {what}, as labels={numbers_as} says"
            )
    elif no_vector is not None and no_columns is not None:
        raise ValueError(
            f"{no_vector.where}: {no_vector.shown} can only be columns, and in"
            f" {no_columns.where} {no_columns.shown} only a vector of {size}; write all one way"
        )
    elif numbers and no_vector is None and no_columns is None:
        raise ValueError(
            f"{numbers[0].where}: {numbers[0].shown} may be columns counted from 0, or a vector of"
            f" {size}, one a class; so it is with all labels. Say which with the option"
            " labels=columns or labels=vectors"
        )
    is_vectors = numbers_as == "vectors" if numbers_as else no_columns is not None
    vectors = np.zeros((len(told), classes), np.int8)
    for row, one in enumerate(told):
        if is_vectors and one.vector is not None:
            if one.unknown:
                raise ValueError(f"{one.where}: a vector says unknown by -1; leave out 'unknown'")
            vectors[row] = one.vector
        else:
            vectors[row, one.columns] = 1
            vectors[row, one.unknown] = -1
    how = []
    if is_vectors:
        how = [
            f"lists of numbers are vectors: 1, 0 or -1 (unknown) for each of"
            f" {counted(classes, 'class', 'classes')}"
        ]
    elif any(one.columns for one in numbers):
        how = ["numbers are columns, counted from 0"]
    return vectors if (vectors == -1).any() else vectors.astype(np.uint8), how


def _read_range(tar: str, start: int, size: int) -> bytes:
    path = as_path(tar)
    if isinstance(path, RemotePath):
        return path.read_range(start, size)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)
