"""Images that are there twice, by where they lie and by their bytes, whatever they are called."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dclip.data.listing import Split
from dclip.data.webdataset_listing import WebdatasetListing
from dclip.store.paths import as_path
from pipeline.features.preflight import image_paths, places, spread

_MOST_SIZES = 20_000
"""Files of a split whose sizes are asked for, where not all are to be compared."""

_MOST_READ = 4_000
"""Files of two splits that are read, where not all are to be compared."""

_SMALL = 4096
"""Bytes below which two pictures may be alike by chance: drawn ones, or blank ones."""

_TAIL = 1024
"""Bytes at the end of a file that are read first: few files of one size share them."""


@dataclass(frozen=True)
class Overlap:
    """Images of one split that another has as well.

    Attributes:
        by_place: Rows of the second split whose file, or byte of a tar, is the first one's.
        copies: Pairs of rows, first and second split, of files that have the same bytes and are no
            doubt copies: they have one name, or more bytes than drawn and blank pictures have.
        alike: Pairs of other files that have the same bytes.
        compared: How it was found, in words; it says so where not all images were compared.
        is_whole: Whether all images were compared by their bytes.
    """

    by_place: list[int]
    copies: list[tuple[int, int]]
    alike: list[tuple[int, int]]
    compared: str
    is_whole: bool


def find_overlap(one: Split, other: Split, *, everything: bool) -> Overlap:
    """Which images of a split are in another one.

    Files are compared by size, those of one size by their last bytes, and those that agree by a
    hash of all bytes. Of many files a part is compared, evenly spread, unless ``everything``.
    Remote images are compared by place.

    Args:
        one: A split.
        other: Another split, or the same: then a row is not compared with itself.
        everything: Compare the bytes of all images.

    Raises:
        OSError: A file cannot be read.
    """
    is_same = one is other
    held = set() if is_same else set(places(one))
    by_place = [row for row, place in enumerate(places(other)) if place in held]
    ours, theirs = _files(one), _files(other)
    if len(by_place) == len(other) or not ours or not theirs:
        return Overlap(by_place, [], [], "by place", is_whole=len(by_place) == len(other))
    most = None if everything else _MOST_SIZES
    our_rows = _by_size(ours, most)
    their_rows = our_rows if is_same else _by_size(theirs, most)
    shared = sorted(
        size
        for size, rows in our_rows.items()
        if (len(rows) > 1 if is_same else size in their_rows)
    )
    chosen = shared if everything else _within(shared, our_rows, their_rows)
    seen = set(by_place)
    copies: list[tuple[int, int]] = []
    alike: list[tuple[int, int]] = []
    for size in chosen:
        first = [(row, ours[row]) for row in our_rows[size]]
        second = [(row, theirs[row]) for row in their_rows[size] if row not in seen]
        for twin, row in _alike(first, second, is_same=is_same):
            is_copy = size >= _SMALL or ours[twin].name == theirs[row].name != ""
            (copies if is_copy else alike).append((twin, row))
    is_whole = chosen == shared and (everything or max(len(one), len(other)) <= _MOST_SIZES)
    how = "by place, size and bytes" if is_whole else "by place, and by the bytes of a part of them"
    return Overlap(by_place, copies, alike, how, is_whole)


class _File(NamedTuple):
    """Where the bytes of an image are.

    Attributes:
        path: The file, or the tar that holds it.
        name: What the image is called; empty in a tar, where it may be a mere number.
        start: First byte.
        size: Number of bytes; None for a whole file.
    """

    path: Path
    name: str
    start: int
    size: int | None


def _files(listing: Any) -> list[_File]:
    """Where each image of a split is; none where images are drawn, or one is remote."""
    if isinstance(listing, WebdatasetListing):
        tars = [as_path(tar) for tar in listing.tars]
        local = [tar for tar in tars if isinstance(tar, Path)]
        if len(local) < len(tars):
            return []
        places = zip(
            listing.tar_of.tolist(), listing.offsets.tolist(), listing.sizes.tolist(), strict=True
        )
        return [_File(local[tar], "", start, size) for tar, start, size in places]
    paths = image_paths(listing)
    found = [_File(path, path.name, 0, None) for path in paths if isinstance(path, Path)]
    return found if len(found) == len(paths) else []


def _by_size(files: Sequence[_File], most: int | None) -> dict[int, list[int]]:
    """Rows by the number of their bytes; images that are missing are left out."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for row in spread(len(files), most):
        path, _, _, size = files[row]
        try:
            sizes[path.stat().st_size if size is None else size].append(row)
        except FileNotFoundError:
            continue  # a finding of its own
    return sizes


def _within(
    sizes: Sequence[int], ours: Mapping[int, list[int]], theirs: Mapping[int, list[int]]
) -> list[int]:
    """As many sizes, evenly spread, as have few enough files."""
    files = sum(len(ours[size]) + len(theirs[size]) for size in sizes)
    if files <= _MOST_READ:
        return list(sizes)
    return [sizes[position] for position in spread(len(sizes), len(sizes) * _MOST_READ // files)]


def _alike(
    ours: Sequence[tuple[int, _File]], theirs: Sequence[tuple[int, _File]], *, is_same: bool
) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose files, all of one size, have the same bytes; each second row once."""
    ends: dict[bytes, list[tuple[int, _File]]] = defaultdict(list)
    for row, file in ours:
        ends[_read(file, last=_TAIL)].append((row, file))
    whole: dict[int, bytes] = {}
    for row, file in theirs:
        own = None
        for twin, other in ends.get(_read(file, last=_TAIL), ()):
            if is_same and twin >= row:
                continue
            own = own or hashlib.sha256(_read(file)).digest()
            if twin not in whole:
                whole[twin] = hashlib.sha256(_read(other)).digest()
            if whole[twin] == own:
                yield twin, row
                break


def _read(file: _File, *, last: int | None = None) -> bytes:
    """The bytes of an image, all of them or the last ones."""
    with file.path.open("rb") as opened:
        end = opened.seek(0, 2) if file.size is None else file.start + file.size
        begin = file.start if last is None else max(file.start, end - last)
        opened.seek(begin)
        return opened.read(end - begin)
