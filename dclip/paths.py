"""Places of files: local paths, and URLs of object stores and web servers, used alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

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
