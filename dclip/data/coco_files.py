"""From what an annotation file calls an image to the file it means, below the image folder.

Exporters write names, paths of another machine, Windows' paths and addresses. Whatever they write,
only files below the given folders are looked at.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from dclip.store.paths import AnyPath, RemotePath, has_folders
from dclip.words import counted

_SIMPLE = re.compile(
    r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}/){0,9}[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}"
)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL_FILES = re.compile(r"(?:^|/)local-files/?\?(?:.*&)?d=([^&]*)")
_UPLOADED = "/data/upload/"
_SPLIT = re.compile(r"(train|training|trainval|val|valid|validation|dev|test|testing)[-_]?\d*")
_SHOWN = 120
_MAX_BYTES = 255  # of a file's name


class ImageFiles(NamedTuple):
    """Where the images of an annotation file lie.

    Attributes:
        folder: Folder of all of them.
        file_names: Of each image, relative to ``folder``.
        notes: What was taken for what; see `dclip.data.listing.Keyed`.
    """

    folder: AnyPath
    file_names: tuple[str, ...]
    notes: tuple[str, ...]


class _Reference(NamedTuple):
    """A file name as an annotation file has it, taken apart.

    Attributes:
        name: As it is there.
        kind: A ``"plain"`` relative path; a ``"foreign"`` path or a ``"url"``, of which the last
            part is enough to know a file by; a ``"rooted"`` path, which takes a folder's name as
            well; or one that leads ``"outside"``.
        parts: The path; it never leads up.
    """

    name: str
    kind: Literal["plain", "foreign", "url", "rooted", "outside"]
    parts: tuple[str, ...]


class _Place(NamedTuple):
    """A file: in which of the folders, and its path there."""

    folder: int
    path: str
    start: int
    is_moved: bool


def find_image_files(
    names: Mapping[str, str], folders: Sequence[AnyPath], *, split: str, source: AnyPath
) -> ImageFiles:
    """The files that an annotation file means.

    A name is taken as it stands where a file of that name lies in one of the folders, the first
    first. Else it may begin with folders that are not there (``train/1.jpg`` in a folder ``train``;
    where no name at all stands for itself, any), be written with backslashes or be a URL, of which
    a file of that name is taken, be an absolute path inside, or one whose last folder is there
    (a bare name will not do, as it may mean another file), differ in upper and lower case, percent
    signs or Unicode form where one file alone is meant. Of a remote folder the first image is
    looked for, and the others are taken alike.

    Args:
        names: File names by key of the image.
        folders: Where images may lie, all of them below the last or equal to it.
        split: The split, for errors.
        source: The annotation file, for errors.

    Returns:
        Of an image that is not there the path where it would lie, so that it is missed when it is
        read.

    Raises:
        ValueError: If a name leads out of the folders, if of its kind no file is there, if two
            names lead to one file, or, on a web server, if the first image is not there.
        OSError: If a remote store cannot be reached.
    """
    references = [_reference(name) for name in names.values()]
    for key, reference in zip(names, references, strict=True):
        if reference.kind == "outside":
            raise _not_inside(key, reference, folders[0], source)
    if isinstance(folders[0], RemotePath):
        first = _ask_for_first(references[0], [f for f in folders if isinstance(f, RemotePath)])
        if first is None and not has_folders(folders[0]) and references[0].kind == "plain":
            places = " nor ".join(str(folder / references[0].name) for folder in folders)
            raise ValueError(f"no images of split {split!r}: there is no {places}")
        found = [first] + [None] * (len(references) - 1)
    else:
        found = _look_up(references, [folder for folder in folders if isinstance(folder, Path)])
    _refuse_shared(names, references, found, folders, source)
    moves: Counter[tuple[str, int, int]] = Counter(
        (reference.kind, place.folder, place.start)
        for reference, place in zip(references, found, strict=True)
        if place is not None
    )
    (_, usual, _), _ = moves.most_common(1)[0] if moves else (("", 0, 0), 0)
    settled = []
    for key, reference, place in zip(names, references, found, strict=True):
        settled.append(place or _where_it_would_lie(reference, folders, moves, usual))
        if settled[-1] is None:
            raise _not_there(key, reference, folders, source)
    return _together(references, [place for place in settled if place is not None], folders)


# ---------------------------------------------------------------------------------------------
# What a name says
# ---------------------------------------------------------------------------------------------


def _reference(name: str) -> _Reference:
    """A file name taken apart."""
    if _SIMPLE.fullmatch(name):  # of most of them; there may be a million
        return _Reference(name, "plain", tuple(name.split("/")))
    local = _LOCAL_FILES.search(name)
    if local:  # Label Studio's addresses of a file on its disk, and of one that was uploaded
        return _checked(name, "url", unquote(local[1]).split("/"))
    if name.startswith(_UPLOADED):
        return _checked(name, "url", unquote(name).split("/"))
    scheme = _SCHEME.match(name)
    if scheme:
        try:
            path = unquote(urlsplit(name).path)
        except ValueError:
            return _Reference(name, "outside", ())
        if scheme[1].lower() != "file":
            return _checked(name, "url", path.split("/"))
        if _DRIVE.match(path[1:]):
            return _checked(name, "foreign", path[3:].split("/"))
        return _checked(name, "rooted", path.split("/"))
    if _DRIVE.match(name):
        return _checked(name, "foreign", name[2:].replace("\\", "/").split("/"))
    parts = name.replace("\\", "/").split("/")
    ups = [part for part in parts if part != "."].count("..")
    rest = [part for part in parts if part != "."]
    if ups and rest[:ups] == [".."] * ups:
        return _checked(name, "rooted", rest[ups:])
    if name.startswith("/"):
        return _checked(name, "rooted", parts)
    return _checked(name, "foreign" if "\\" in name else "plain", parts)


def _checked(
    name: str, kind: Literal["plain", "foreign", "url", "rooted"], parts: Sequence[str]
) -> _Reference:
    """The reference, if its path leads to something and nowhere up."""
    kept = tuple(part for part in parts if part not in ("", "."))
    is_unfit = any("\0" in part or "\\" in part or _is_long(part) for part in kept)
    if not kept or ".." in kept or is_unfit:
        return _Reference(name, "outside", ())
    return _Reference(name, kind, kept)


def _is_long(part: str) -> bool:
    return len(part.encode("utf-8", "replace")) > _MAX_BYTES


# ---------------------------------------------------------------------------------------------
# Looking
# ---------------------------------------------------------------------------------------------


class _Listed:
    """What lies in local folders, each of them listed once."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, bool]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}

    def entries(self, folder: str) -> dict[str, bool]:
        """Names in a folder, and whether each is a folder itself; none if it cannot be listed."""
        found = self._entries.get(folder)
        if found is None:
            try:
                with os.scandir(folder) as entries:
                    found = {entry.name: entry.is_dir() for entry in entries}
            except (OSError, ValueError):
                found = {}
            self._entries[folder] = found
        return found

    def has(self, folder: str, parts: Sequence[str]) -> bool:
        """Whether there is a file of exactly this path."""
        above = folder if len(parts) == 1 else os.path.join(folder, *parts[:-1])  # noqa: PTH118
        return self.entries(above).get(parts[-1]) is False

    def alike(self, folder: str, parts: Sequence[str]) -> str | None:
        """The path of the one file whose path differs in case, percent signs or Unicode form."""
        path: list[str] = []
        for part in parts:
            here = os.path.join(folder, *path)  # noqa: PTH118
            if part not in self.entries(here):
                if here not in self._alike:
                    self._alike[here] = {}
                    for name in self.entries(here):
                        self._alike[here].setdefault(_folded(name), []).append(name)
                same = self._alike[here].get(_folded(part), [])
                if len(same) != 1:
                    return None
                part = same[0]
            path.append(part)
        return "/".join(path) if self.has(folder, path) else None


def _folded(name: str) -> str:
    """What names that differ in case, percent signs or Unicode form have in common."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _look_up(references: Sequence[_Reference], folders: Sequence[Path]) -> list[_Place | None]:
    """Where each image lies in local folders; None where it does not."""
    listed = _Listed()
    roots = [
        (number, above.parts[1:])
        for number, folder in enumerate(folders)
        for above in (folder.absolute(), folder.resolve())
    ]

    def find(reference: _Reference, *, is_lax: bool = False) -> _Place | None:
        return _find(reference, folders, roots, listed, is_lax=is_lax)

    found = [find(reference) for reference in references]
    plain = [row for row, reference in enumerate(references) if reference.kind == "plain"]
    if plain and not any(found[row] for row in plain):
        again = {row: find(references[row], is_lax=True) for row in plain}
        targets = Counter((place.folder, place.path) for place in again.values() if place)
        names = {references[row].name for row, place in again.items() if place}
        if len(targets) == len(names):  # else folders tell the images apart
            for row, place in again.items():
                found[row] = place
    return found


def _find(
    reference: _Reference,
    folders: Sequence[Path],
    roots: Sequence[tuple[int, tuple[str, ...]]],
    listed: _Listed,
    *,
    is_lax: bool,
) -> _Place | None:
    """Where one image lies; ``roots`` are the absolute paths of the folders."""
    parts = reference.parts
    if reference.kind == "plain":
        for number, folder in enumerate(folders):
            if listed.has(str(folder), parts):
                return _Place(number, reference.name, 0, False)
    else:
        for number, root in roots:
            if parts[: len(root)] == root and len(parts) > len(root):  # there or not, it is inside
                return _Place(number, "/".join(parts[len(root) :]), len(root), True)
    starts = list(_starts(reference, folders, is_lax=is_lax))
    for start, number in starts:
        if listed.has(str(folders[number]), parts[start:]):
            return _Place(number, "/".join(parts[start:]), start, True)
    for start, number in starts:
        path = listed.alike(str(folders[number]), parts[start:])
        if path is not None:
            return _Place(number, path, start, True)
    return None


def _starts(
    reference: _Reference, folders: Sequence[AnyPath], *, is_lax: bool
) -> Iterator[tuple[int, int]]:
    """What may be left out at the front of a path, and in which folder, the least first."""
    parts, kind = reference.parts, reference.kind
    for start in range(len(parts)):
        for number, folder in enumerate(folders):
            above = parts[start - 1] if start else ""
            is_known = len(parts) - start > 1 or above == folder.name
            is_whole = start == 0 and kind == "plain"
            may_be_bare = is_lax or kind in ("foreign", "url")
            if is_known or is_whole or (may_be_bare and not _is_elsewhere(above, folder)):
                yield start, number


def _is_elsewhere(above: str, folder: AnyPath) -> bool:
    """Whether the folder a name speaks of is another one than that it is looked for in."""
    if _SPLIT.fullmatch(above) and _SPLIT.fullmatch(folder.name):
        return True
    return isinstance(folder, Path) and above != "" and (folder.parent / above).is_dir()


def _ask_for_first(reference: _Reference, folders: Sequence[RemotePath]) -> _Place | None:
    """Where the first image lies in remote folders."""
    for start, number in _starts(reference, folders, is_lax=False):
        is_whole = start == 0 and reference.kind == "plain"
        path = reference.name if is_whole else "/".join(reference.parts[start:])
        if (folders[number] / path).is_file():
            return _Place(number, path, start, not is_whole)
    return None


# ---------------------------------------------------------------------------------------------
# What follows
# ---------------------------------------------------------------------------------------------


def _where_it_would_lie(
    reference: _Reference,
    folders: Sequence[AnyPath],
    moves: Counter[tuple[str, int, int]],
    usual: int,
) -> _Place | None:
    """The path of an image that is not there, by those of its kind that are."""
    allowed = set(_starts(reference, folders, is_lax=False))
    alike = [
        (count, -start, number)
        for (kind, number, start), count in moves.items()
        if kind == reference.kind and (start, number) in allowed
    ]
    if reference.kind == "plain" and (not alike or max(alike)[1] == 0):
        return _Place(max(alike)[2] if alike else usual, reference.name, 0, False)
    if not alike:
        return None
    _, left_out, number = max(alike)
    return _Place(number, "/".join(reference.parts[-left_out:]), -left_out, True)


def _refuse_shared(
    names: Mapping[str, str],
    references: Sequence[_Reference],
    found: list[_Place | None],
    folders: Sequence[AnyPath],
    source: AnyPath,
) -> None:
    """Refuse a file that two different names lead to; a plain name counts as not found then."""
    owner: dict[tuple[int, str], str] = {}
    keys = list(names)
    there = [(row, place) for row, place in enumerate(found) if place is not None]
    for row, place in sorted(there, key=lambda item: item[1].is_moved):
        other = owner.setdefault((place.folder, place.path), keys[row])
        if names[other] == references[row].name or not place.is_moved:
            continue
        if references[row].kind != "plain":
            raise ValueError(
                f"{source}: images {other} and {keys[row]} have file names"
                f" {names[other][:_SHOWN]!r} and {references[row].name[:_SHOWN]!r}, and both would"
                f" be {folders[place.folder] / place.path}"
            )
        found[row] = None


def _together(
    references: Sequence[_Reference], places: Sequence[_Place], folders: Sequence[AnyPath]
) -> ImageFiles:
    """All images below one folder, and a note on those that were found under another name."""
    used = sorted({place.folder for place in places})
    folder = folders[used[0]]
    file_names = [place.path for place in places]
    if len(used) > 1:  # of a remote store all are in one
        local = [Path(str(folders[number])).absolute() for number in range(len(folders))]
        folder = Path(os.path.commonpath([local[number] for number in used]))
        file_names = [
            (local[place.folder].relative_to(folder) / place.path).as_posix() for place in places
        ]
    moved = [row for row, place in enumerate(places) if place.is_moved]
    notes = []
    if moved:
        name, example = references[moved[0]].name[:_SHOWN], file_names[moved[0]]
        notes.append(
            f"{len(moved):,} of {counted(len(places), 'file name')} taken for another path in"
            f" {folder}, such as {name!r} for {example}"
        )
    return ImageFiles(folder, tuple(file_names), tuple(notes))


def _not_inside(key: str, reference: _Reference, folder: AnyPath, source: AnyPath) -> ValueError:
    is_long = any(map(_is_long, re.split(r"[\\/]", reference.name)))
    reason = "too long for a file" if is_long else f"not inside the image folder {folder}"
    return ValueError(
        f"{source}: image {key} has file name {reference.name[:_SHOWN]!r}, which is {reason}"
    )


def _not_there(
    key: str, reference: _Reference, folders: Sequence[AnyPath], source: AnyPath
) -> ValueError:
    """The error for a name of which no image can be found."""
    if reference.kind == "rooted":
        return _not_inside(key, reference, folders[0], source)
    what = "is a URL" if reference.kind == "url" else "is a path of another machine"
    below = " nor in ".join(map(str, folders))
    return ValueError(
        f"{source}: the file name of image {key}, {reference.name[:_SHOWN]!r}, {what}, and there is"
        f" no {reference.parts[-1][:_SHOWN]} in {below}; put the images there, or name their folder"
        " with --root"
    )
