"""Images that are there twice, by where they lie and by their bytes, whatever they are called."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dclip.data.listing import Split

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


def find_overlap(one: "Split", other: "Split", *, everything: bool) -> Overlap:
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
    from pipeline.preflight import places

    is_same = one is other
    held = set() if is_same else set(places(one))
    by_place = [row for row, place in enumerate(places(other)) if place in held]
    if len(by_place) == len(other) or not (_is_local(one) and _is_local(other)):
        return Overlap(by_place, [], [], "by place", is_whole=len(by_place) == len(other))
    most = None if everything else _MOST_SIZES
    ours, theirs = _by_size(one, most), _by_size(other, most)
    if is_same:
        shared = sorted(size for size, rows in ours.items() if len(rows) > 1)
    else:
        shared = sorted(ours.keys() & theirs.keys())
    chosen = shared if everything else _within(shared, ours, theirs)
    seen = set(by_place)
    copies: list[tuple[int, int]] = []
    alike: list[tuple[int, int]] = []
    for size in chosen:
        for first, second in _alike(one, ours[size], other, theirs[size], is_same):
            if second not in seen:
                is_copy = size >= _SMALL or _name(one, first) == _name(other, second) != ""
                (copies if is_copy else alike).append((first, second))
    is_whole = chosen == shared and (everything or max(len(one), len(other)) <= _MOST_SIZES)
    how = "by place, size and bytes" if is_whole else "by place, and by the bytes of a part of them"
    return Overlap(by_place, copies, alike, how, is_whole)


def _is_local(listing: Any) -> bool:
    """Whether each image has bytes on this machine."""
    return next(iter(_files(listing, range(1))), None) is not None


def _files(listing: Any, rows: Iterable[int]) -> Iterator[tuple[Path, int, int | None]]:
    """File, first byte and number of bytes of some images; the number is None for a whole file."""
    from dclip.data.webdataset_listing import WebdatasetListing
    from dclip.paths import as_path
    from pipeline.preflight import image_paths

    if isinstance(listing, WebdatasetListing):
        for row in rows:
            tar = as_path(listing.tars[listing.tar_of[row]])
            if isinstance(tar, Path):
                yield tar, int(listing.offsets[row]), int(listing.sizes[row])
        return
    paths = image_paths(listing)
    for row in rows:
        if row < len(paths) and isinstance(path := paths[row], Path):
            yield path, 0, None


def _name(listing: Any, row: int) -> str:
    """File name of an image; empty in a tar, where it may be a mere number."""
    from pipeline.preflight import image_paths

    paths = image_paths(listing)
    return paths[row].name if row < len(paths) else ""


def _by_size(listing: "Split", most: int | None) -> dict[int, list[int]]:
    """Rows by the number of their bytes; images that are missing are left out."""
    from pipeline.preflight import spread

    rows = spread(len(listing), most)
    sizes: dict[int, list[int]] = defaultdict(list)
    for row, (path, _, size) in zip(rows, _files(listing, rows), strict=True):
        try:
            sizes[path.stat().st_size if size is None else size].append(row)
        except FileNotFoundError:
            continue  # a finding of its own
    return sizes


def _within(
    sizes: Sequence[int], ours: dict[int, list[int]], theirs: dict[int, list[int]]
) -> list[int]:
    """As many sizes, evenly spread, as have few enough files."""
    from pipeline.preflight import spread

    files = sum(len(ours[size]) + len(theirs[size]) for size in sizes)
    if files <= _MOST_READ:
        return list(sizes)
    return [sizes[place] for place in spread(len(sizes), len(sizes) * _MOST_READ // files)]


def _alike(
    one: "Split", ours: Sequence[int], other: "Split", theirs: Sequence[int], is_same: bool
) -> list[tuple[int, int]]:
    """Pairs of rows whose files, all of one size, have the same bytes; each second row once."""
    ends: dict[bytes, list[int]] = defaultdict(list)
    for row, end in zip(ours, _tails(one, ours), strict=True):
        ends[end].append(row)
    pairs = []
    whole: dict[int, str] = {}
    for row, end in zip(theirs, _tails(other, theirs), strict=True):
        for twin in ends.get(end, ()):
            if is_same and twin >= row:
                continue
            if twin not in whole:
                whole[twin] = _digest(one, twin)
            if whole[twin] == _digest(other, row):
                pairs.append((twin, row))
                break
    return pairs


def _tails(listing: "Split", rows: Sequence[int]) -> Iterator[bytes]:
    for path, start, size in _files(listing, rows):
        with path.open("rb") as file:
            end = file.seek(0, 2) if size is None else start + size
            begin = max(start, end - _TAIL)
            file.seek(begin)
            yield file.read(end - begin)


def _digest(listing: "Split", row: int) -> str:
    """Hash of all bytes of an image."""
    path, start, size = next(_files(listing, [row]))
    with path.open("rb") as file:
        if size is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(start)
        return hashlib.sha256(file.read(size)).hexdigest()
