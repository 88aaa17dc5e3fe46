"""Image files of a folder: which there are, and which of them a table means by a path."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dclip.data.images import is_image_name
from dclip.data.label_text import short
from dclip.store.paths import AnyPath, has_folders, is_remote

MAX_FILES = 100_000
"""Of a folder with more files, the rest is not looked at to find images that no table lists."""

# A path that is inside as it is written: no part begins with a dot, none is empty.
_PLAIN = re.compile(r"[^\\/\0:.][^\\/\0:]*(?:/[^\\/\0:.][^\\/\0:]*)*")


def images_of(folder: Path, leave_out: Path | None = None) -> tuple[str, ...]:
    """Image files below a folder, relative to it; hidden ones and links to folders are left out.

    Args:
        folder: Local.
        leave_out: A folder of results, not to be searched; nor what else is in the first folder
            on the way to it.

    Returns:
        At most as many as are among the first `MAX_FILES` files, in order of their names.
    """
    skipped = None
    if leave_out is not None and leave_out.absolute().is_relative_to(folder.absolute()):
        way = leave_out.absolute().relative_to(folder.absolute()).parts
        skipped = folder / way[0] if way else None
    found: list[str] = []
    looked = 0
    for top, folders, files in os.walk(folder):
        here = Path(top)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and here / name != skipped
        )
        inside = here.relative_to(folder)
        for name in sorted(files):
            looked += 1
            if looked > MAX_FILES:
                return tuple(found)
            if is_image_name(name):
                found.append((inside / name).as_posix())
    return tuple(found)


def paths_inside(folder: AnyPath) -> Callable[[str, str], str]:
    """A function from what a table has for a path, and where that stands, to the path in a folder.

    It takes backslashes for slashes, and a whole path or ``file://`` URI that lies in the folder.
    What lies elsewhere is a ``ValueError`` of it.
    """
    if isinstance(folder, Path):
        tops = [
            f"{place.as_posix().rstrip('/')}/" for place in (folder.absolute(), folder.resolve())
        ]
    else:
        tops = [f"{str(folder).rstrip('/')}/"]

    def inside(written: str, where: str) -> str:
        if _PLAIN.fullmatch(written):
            return written
        file = written if is_remote(folder) else str(PurePosixPath(written.replace("\\", "/")))
        if written.startswith("file://") and isinstance(folder, Path):
            file = unquote(written.removeprefix("file://").removeprefix("localhost"))
        top = next((top for top in tops if file.startswith(top)), None)
        if top is not None:
            file = file.removeprefix(top)
            file = file if has_folders(folder) else unquote(file)
        path = PurePosixPath(file.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in file or re.match(r"\w+:/", file):
            raise ValueError(f"{where}: {short(written)} is not inside the folder {folder}")
        return str(path)

    return inside


def find_place(folder: Path, split: str, files: Sequence[str]) -> str:
    """Where some images lie if not in the folder itself: ``""``, or a folder in it with a slash.

    That is one called after the split, or else the only one that has all of them.
    """
    if not files or any(is_there(folder / file) for file in files):
        return ""

    def has_all(place: str) -> bool:
        return all(is_there(folder / place / file) for file in files)

    if PurePosixPath(split).name == split and split != "..":
        own = next((place for place in (split, f"images/{split}") if has_all(place)), None)
        if own is not None:
            return f"{own}/"
    below = (path.name for path in folder.iterdir() if path.is_dir())
    found = [name for name in below if not name.startswith(".") and has_all(name)]
    return f"{found[0]}/" if len(found) == 1 else ""


def is_there(path: AnyPath) -> bool:
    """Whether there is a file; not so where its name is too long for one.

    Raises:
        OSError: If a remote store cannot be reached, or refuses.
    """
    try:
        return path.is_file()
    except OSError:
        if is_remote(path):
            raise
        return False
