"""Places of files: local paths, and URLs of object stores and web servers, used alike."""

import errno
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from glob import escape
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias
from urllib.parse import quote, unquote
from uuid import uuid4

from safetensors import SafetensorError

REMOTE = ("s3", "gs", "http", "https")
"""Protocols that are opened through fsspec."""

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CHAINED = re.compile(r"::[A-Za-z0-9+.-]*://")  # of an IPv6 address no :// follows

_BLOCK_BYTES = 1 << 22
_SECONDS_TO_CONNECT = 5
_SECONDS_TO_ANSWER = 10
_SECONDS_TO_RETRY = 0.5


@dataclass(frozen=True)
class RemotePath:
    """A URL with those methods of a ``Path`` that reading and writing whole files takes.

    It holds nothing but the URL, so that it can be pickled, sent to other processes, kept over a
    fork and used from several threads; fsspec keeps the connections. Unlike fsspec and the paths
    built on it, `is_file` and `is_dir` say no only where the store says no: a store that does not
    answer is an error, not an empty one.

    All methods that ask the store raise ``FileNotFoundError`` if it says that there is no such
    file, any other ``OSError`` if it cannot be reached or refuses, and ``ValueError`` if the URL
    is of no use; messages name the URL. A store that is down is given up after seconds (``gs``:
    half a minute), one that takes a request and never answers after a minute or so.

    Attributes:
        url: Starts with one of the protocols in `REMOTE`.

    Example:
        >>> path = RemotePath("https://host/photos") / "a b.jpg"
        >>> print(path, path.name, path.stem, path.suffix)
        https://host/photos/a%20b.jpg a b.jpg a b .jpg
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        """The path of a file below; names are plain, not percent-encoded."""
        return RemotePath(f"{self.url.rstrip('/')}/{quote(name) if self.is_on_web else name}")

    @property
    def name(self) -> str:
        """Last part."""
        last = self.url.rstrip("/").rpartition("/")[2]
        return unquote(last) if self.is_on_web else last

    @property
    def stem(self) -> str:
        """Last part without suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Suffix of the last part, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        """The path without its last part."""
        return RemotePath(self.url.rstrip("/").rpartition("/")[0])

    @property
    def is_on_web(self) -> bool:
        """Whether it is a web server's, which knows files only, no folders."""
        return self._protocol in ("http", "https")

    def absolute(self) -> "RemotePath":
        """The path itself."""
        return self

    def is_file(self) -> bool:
        """Whether the store has a file here; on a web server, one that may be read."""
        try:
            return self._kind() == "file"
        except PermissionError:
            if not self.is_on_web:
                raise
            return False  # many say so of a file that is missing

    def is_dir(self) -> bool:
        """Whether the store has files below; never so on a web server, see `has_folders`."""
        return not self.is_on_web and self._kind() == "directory"

    def iterdir(self) -> Iterator["RemotePath"]:
        """What lies directly below; not to be asked of a web server."""
        for found in self._ask("ls", detail=False):
            name = found.rstrip("/").rpartition("/")[2]
            if name != self.name:  # some stores keep an empty file in a folder's place
                yield self / name

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Files below that match a pattern; not to be asked of a web server."""
        below = len(self.url.partition("://")[2].rstrip("/")) + 1
        for found in self._ask("glob", f"{escape(self.url.rstrip('/'))}/{pattern}"):
            yield self / found[below:]

    def info(self) -> Mapping[str, Any]:
        """What the store tells of a file: ``size``, and by its own names a checksum or time."""
        told: Mapping[str, Any] = self._ask("info")
        return told

    def read_bytes(self) -> bytes:
        """All bytes of the file."""
        return bytes(self._ask("cat_file"))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The file as text."""
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer where the file ends."""
        data = bytes(self._ask("cat_file", start=start, end=start + size))
        if len(data) > size:
            raise OSError(f"cannot read a part of {self}: its server gives whole files only")
        return data

    def with_suffix(self, suffix: str) -> "RemotePath":
        """The path with another suffix."""
        return self.parent / f"{self.stem}{suffix}"

    def sizes(self) -> dict[str, int]:
        """Bytes of the files directly below, by name; none if there is no such folder."""
        try:
            listed = self._ask("ls", detail=True)
        except FileNotFoundError:
            return {}
        files = [found for found in listed if found["type"] == "file"]
        return {found["name"].rpartition("/")[2]: int(found["size"]) for found in files}

    def put(self, file: Path) -> None:
        """Upload a local file whole: a reader sees all of it or what was here before."""
        with remote_errors(self):
            _filesystem(self._protocol).put_file(str(file), self.url)

    def get(self, file: Path) -> None:
        """Download the file."""
        with remote_errors(self):
            _filesystem(self._protocol).get_file(self.url, str(file))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""
        if self.is_file() or not missing_ok:
            self._ask("rm_file")

    def open(self, mode: str = "rb") -> Any:
        """A file of fsspec's, to read bytes from and seek in; do so within `remote_errors`."""
        if mode != "rb":
            raise ValueError(f"{self} can be opened in mode 'rb', not {mode!r}")
        return self._ask("open", mode=mode, block_size=_BLOCK_BYTES)

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    def _kind(self) -> str | None:
        try:
            return str(self.info()["type"])
        except FileNotFoundError:
            return None

    def _ask(self, method: str, url: str | None = None, **arguments: Any) -> Any:
        """What a method of fsspec returns; a web server is asked twice, the others do so by it."""
        try:
            return self._ask_once(method, url or self.url, arguments)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            if not self.is_on_web:
                raise
        time.sleep(_SECONDS_TO_RETRY)
        return self._ask_once(method, url or self.url, arguments)

    def _ask_once(self, method: str, url: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return getattr(_filesystem(self._protocol), method)(url, **arguments)
        except Exception as error:
            raise _translated(error, self) from error


AnyPath: TypeAlias = Path | RemotePath
"""A place to read from or write to."""


def as_path(place: str | Path | RemotePath) -> AnyPath:
    """A local path, or for a URL a remote one with the methods of a path; nothing is opened.

    Args:
        place: A path, ``file:`` and a path, or a URL of one of the protocols in `REMOTE`. A path
            that begins with ``~`` or ``~user`` lies in the home folder, as in a shell; ``./~`` is a
            name like any other.

    Raises:
        ValueError: If the protocol is another one (some of those fsspec knows run programs), is
            chained to another, names no host or bucket, or its package is not installed; or there
            is no such home folder.

    Example:
        >>> as_path("images/a.jpg"), as_path("s3://bucket/a.jpg")
        (PosixPath('images/a.jpg'), RemotePath(url='s3://bucket/a.jpg'))
    """
    if isinstance(place, Path | RemotePath):
        return place
    found = _PROTOCOL.match(place)
    if found is None:
        return _at_home(place)
    protocol = found[1]
    if protocol == "file":
        path = place.removeprefix("file:")
        return Path("/" + path.lstrip("/") if path.startswith("//") else path)
    _, separator, rest = place.partition("://")
    if protocol not in REMOTE or not separator or _CHAINED.search(place):
        known = ", ".join(f"{name}://" for name in REMOTE)
        raise ValueError(f"cannot open {place!r}; known are local paths (./a:b), {known}")
    if not rest.strip("/"):
        raise ValueError(f"{place!r} names no {'host' if 'http' in protocol else 'bucket'}")
    if not _is_installed(_PACKAGES[protocol]):
        raise ValueError(f"{place} needs a package: pip install {_PACKAGES[protocol]}")
    return RemotePath(place)


def _at_home(place: str) -> Path:
    """A local path, whose first part may be ``~`` or ``~user``."""
    if not place.startswith("~"):
        return Path(place)
    try:
        return Path(place).expanduser()
    except RuntimeError:
        first = Path(place).parts[0]
        raise ValueError(f"{place}: there is no home folder {first}; ./{first} is a name") from None


def is_remote(path: AnyPath) -> bool:
    """Whether a path is a URL."""
    return isinstance(path, RemotePath)


def has_folders(path: AnyPath) -> bool:
    """Whether one can ask for folders and what is in them; a web server knows only files."""
    return isinstance(path, Path) or not path.is_on_web


@contextmanager
def remote_errors(place: AnyPath) -> Iterator[None]:
    """Turn errors of reading a remote file, where each store has its own kinds, into ``OSError``.

    Args:
        place: Path that the block reads; messages name it. Errors of a local one stay as they are,
            and so do ``ValueError`` and its like, which are of the block's own making.

    Raises:
        FileNotFoundError: If the store says that there is no such file.
        OSError: If it cannot be reached, or refuses.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise
    except Exception as error:
        if not isinstance(place, RemotePath):
            raise
        raise _translated(error, place) from error


def _translated(error: Exception, place: RemotePath) -> Exception:
    """The error to raise for one of fsspec, or of what fsspec is built on."""
    cause, status = error.__cause__, getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) and place.is_on_web and isinstance(cause, Exception):
        return _translated(cause, place)  # fsspec says so of a web server whatever went wrong
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    reason = f"{status} {getattr(error, 'message', '')}" if status else str(error)
    if isinstance(error, TimeoutError) and not reason:
        reason = "no answer in time"
    text = f"cannot read {place}: {' '.join(reason.split()) or type(error).__name__}"
    if isinstance(error, ValueError):
        return ValueError(text)
    if isinstance(error, PermissionError) or status == 403:
        return PermissionError(text)
    return OSError(text)


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _filesystem(protocol: str) -> Any:
    """What fsspec keeps per process, with bounds on how long it tries."""
    # a third of a second, for what is remote alone
    import fsspec
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(
        total=None, sock_connect=_SECONDS_TO_CONNECT, sock_read=_SECONDS_TO_ANSWER
    )
    if protocol == "gs":
        # an extra; not gcsfs.GCSFileSystem, which first asks for a minute what kind of bucket it is
        from gcsfs.core import GCSFileSystem

        # it logs, with a traceback, the errors that it raises
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        return GCSFileSystem(requests_timeout=timeout, use_listings_cache=False)
    if protocol != "s3":
        return fsspec.filesystem(protocol, client_kwargs={"timeout": timeout})
    config = {
        "connect_timeout": _SECONDS_TO_CONNECT,
        "read_timeout": _SECONDS_TO_ANSWER,
        "retries": {"total_max_attempts": 2},
    }
    # one request for a file, not one for its size as well
    filesystem = fsspec.filesystem(
        "s3", config_kwargs=config, max_concurrency=1, use_listings_cache=False
    )
    filesystem.retries = 3
    return filesystem


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
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # that of any new file: safetensors makes one of its own, for one
            if isinstance(path, Path):
                with temporary.open("r+b") as file:  # Windows syncs what may be written only
                    os.fsync(file.fileno())
                temporary.replace(path)
            else:
                path.put(temporary)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(temporary)  # a full disk does not say which
            raise
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OSError(f"cannot write {path}: {error}") from None
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file so that it is either whole or absent."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
