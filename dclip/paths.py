"""Places of files: local paths, and URLs of object stores and web servers, used alike."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

if TYPE_CHECKING:
    from upath import UPath

    AnyPath: TypeAlias = Path | UPath
else:
    # of remote paths any kind: the package that has them is imported where the first one is met
    AnyPath = Any

REMOTE = ("s3", "gs", "http", "https")
"""Protocols that are opened through fsspec."""

_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def as_path(place: str | Path) -> AnyPath:
    """A local path, or for a URL a remote one with the methods of a path.

    Args:
        place: A path, ``file:`` and a path, or a URL of one of the protocols in `REMOTE`.

    Raises:
        ValueError: If the protocol is another one (some of those fsspec knows run programs), or its
            package is not installed.

    Example:
        >>> as_path("images/a.jpg")
        PosixPath('images/a.jpg')
    """
    if isinstance(place, Path):
        return place
    protocol, separator, _ = place.partition("://")
    if protocol == "file" or place.startswith("file:/"):
        return Path("/" + place.removeprefix("file:").lstrip("/"))
    if not separator:
        return Path(place)
    if protocol not in REMOTE:
        known = ", ".join(f"{name}://" for name in REMOTE)
        raise ValueError(f"cannot open {place!r}; known are local paths, {known}")
    from upath import UPath

    try:
        path = UPath(place)
        _ = path.fs  # imports what the protocol needs
    except ImportError:
        raise ValueError(f"{place} needs a package: pip install {_EXTRAS[protocol]}") from None
    return path


def is_remote(path: AnyPath) -> bool:
    """Whether a path is a URL."""
    return not isinstance(path, Path)


@contextmanager
def remote_errors(place: object) -> Iterator[None]:
    """Turn errors of a remote file system, where each has kinds of its own, into ``OSError``.

    Args:
        place: Path or URL that the block is about; the message names it.
    """
    try:
        yield
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError):
        raise
    except ImportError as error:
        raise ValueError(f"{place} needs a package that is not installed: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{place}: {reason}") from error


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """A local file to write, which becomes ``path`` when the block ends without an error.

    A local target is written beside itself, synced and renamed; a remote one is uploaded whole. So
    a reader finds all of it or nothing, whenever the writer is killed.

    Raises:
        OSError: The place cannot be written; the message names it.
    """
    with ExitStack() as stack:
        if isinstance(path, Path):
            temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
        else:
            folder = stack.enter_context(TemporaryDirectory(prefix="dclip-"))
            temporary = Path(folder) / path.name
        try:
            yield temporary
            if isinstance(path, Path):
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
            else:
                with remote_errors(path):
                    path.fs.put_file(str(temporary), path.path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file so that it is either whole or absent."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
