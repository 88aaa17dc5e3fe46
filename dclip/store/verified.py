"""Which shards were read whole and found sound a short while ago, so that nobody reads them again.

A record is a small JSON file outside the features. It holds for each shard its checksum, the state
of its file (size, times, inode) and when the two were compared. A shard is read again when its file
is another or was touched, when the manifest changed in anything, or after a day: a disk that loses
bits changes no times. A record that is missing or cannot be read only costs time.
"""

import hashlib
import logging
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dclip.store.paths import write_text
from dclip.store.shards import Manifest, ShardEntry

SECONDS = 24 * 3600
"""For how long a shard is taken for sound without a look at its content."""

_TICK_NS = 50_000_000  # more than the steps in which a kernel's clock stamps files

log = logging.getLogger(__name__)


class FileState(BaseModel):
    """What changes when a file is written to, replaced or copied.

    No program can set ``changed``, the time of the last change of content or attributes (on
    Windows: when the file was made); so a file whose old time was put back is told apart, too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    modified: int
    changed: int
    inode: int


class _Seen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    state: FileState
    checked: float


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    manifest: str
    shards: dict[str, _Seen]


def file_state(path: Path) -> FileState | None:
    """State of a file now; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(
        bytes=found.st_size,
        modified=found.st_mtime_ns,
        changed=found.st_ctime_ns,
        inode=found.st_ino,
    )


def settled_state(path: Path) -> FileState | None:
    """State of a file from which every later one differs; None if there is none, or not yet.

    Files are stamped in steps of a clock, so that a second write within a step leaves the times as
    they are. A file that was written a moment ago is waited for; not so where steps are seconds.
    """
    for wait in (_TICK_NS / 1e9, 0):
        state = file_state(path)
        if state is None:
            return None
        newest = max(state.modified, state.changed)
        step = _TICK_NS if newest % 10**9 else 2 * 10**9  # some disks keep whole seconds
        if time.time_ns() - newest > step:
            return state
        time.sleep(wait)
    return None


class Verified:
    """The shards of one local folder that were compared with their checksums lately.

    Args:
        records: Folder of the records of many folders of features; need not exist.
        folder: Folder of the shards.
        manifest: Its manifest; what was found under another one does not count.
    """

    def __init__(self, records: Path, folder: Path, manifest: Manifest) -> None:
        self.path = _place(records, folder)
        self._folder = folder.absolute()
        self._manifest = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
        self._shards: dict[str, _Seen] = {}
        try:
            content = _Content.model_validate_json(self.path.read_bytes())
        except (OSError, ValueError):
            return  # there is none, or none that can be used: everything is read
        if (content.folder, content.manifest) == (str(self._folder), self._manifest):
            self._shards = content.shards

    def holds(self, entry: ShardEntry) -> bool:
        """Whether a shard was found sound within a day and its file is as it was then."""
        seen = self._shards.get(entry.name)
        return (
            seen is not None
            and seen.sha256 == entry.sha256
            and 0 <= time.time() - seen.checked < SECONDS
            and seen.state == file_state(self._folder / entry.name)
        )

    def add(self, entry: ShardEntry, before: FileState | None) -> None:
        """Note that a shard is sound.

        Args:
            entry: What the manifest says of it, to which its bytes were equal.
            before: Its :func:`settled_state` before they were read, or its :func:`file_state` when
                they had been written. Where it is None, or not that of the file now, nothing is
                noted.
        """
        if before is not None and before == file_state(self._folder / entry.name):
            self._shards[entry.name] = _Seen(sha256=entry.sha256, state=before, checked=time.time())

    def write(self) -> None:
        """Keep the record; one command's replaces another's, each of which is true."""
        content = _Content(folder=str(self._folder), manifest=self._manifest, shards=self._shards)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, content.model_dump_json())
        except OSError as error:
            log.warning("every command hashes the shards of %s anew: %s", self._folder, error)


def forget(records: Path, folder: Path) -> None:
    """Delete the record of a folder, so that its shards are read again.

    Raises:
        OSError: It is there and cannot be deleted.
    """
    path = _place(records, folder)
    if path.exists():  # where nothing can be written, nothing is to be deleted either
        path.unlink(missing_ok=True)


def _place(records: Path, folder: Path) -> Path:
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()
    return records / f"{name[:32]}.json"
