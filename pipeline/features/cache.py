"""Where features lie while they are trained on: in their files, in RAM, or on the GPU.

Files are mapped, so that the page cache serves all processes of a machine. Remote features, which
lie in the output folder that all nodes share, and those on a slow disk, are better copied into RAM
first: one copy a node, in a RAM-backed folder, shared by all its workers, and removed by the last
of them. A system without such a folder has no such copies; ``auto`` then goes without.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from dclip.fitting.batches import FeatureSource, MemoryFeatures
from dclip.store.paths import as_path
from dclip.store.reader import FeatureReader
from dclip.store.shards import MANIFEST, read_manifest
from dclip.words import told
from pipeline.features.copies import copy_features, local_folders
from pipeline.features.opened import open_features
from pipeline.terminal.errors import StageError

try:
    import fcntl
except ImportError:  # Windows; macOS has it, but no RAM disk
    fcntl = None  # type: ignore[assignment]

RAM_DISK = Path("/dev/shm")
_SHARE = 0.8  # of the memory that is free: what a copy may take
_POLL_SECONDS = 0.02


@contextmanager
def cached_features(
    folders: Sequence[str],
    output: Path,
    *,
    cache: str,
    device: torch.device,
    gpu_share: float = 1.0,
) -> Iterator[tuple[FeatureReader, FeatureSource]]:
    """Open the features of complete plans, in the memory that the settings ask for.

    Args:
        folders: The clean one, then its views.
        output: The output folder.
        cache: ``auto``, ``device``, ``ram`` or ``none`` (see ``train.cache``).
        device: Where the training runs.
        gpu_share: Share of the GPU's memory that this process may fill.

    Yields:
        The reader, and what to train on: the reader itself, or its copy on the device.

    Raises:
        StageError: Features are missing or damaged, or do not fit where they should go.
    """
    with ExitStack() as held:
        are_remote = not all(isinstance(as_path(folder), Path) for folder in folders)
        if cache == "ram" or (cache == "auto" and are_remote and device.type == "cpu"):
            try:
                folders = held.enter_context(_all_in_ram(local_folders(folders, output)))
            except _NoRoomError as error:
                if cache == "ram":
                    raise StageError(
                        f"--train.cache ram: {error}; use --train.cache none"
                    ) from None
        reader = open_features(folders, output, verify=False)
        source: FeatureSource = reader
        if device.type == "cuda" and cache in ("auto", "device"):
            source = _on_gpu(reader, device, gpu_share, must=cache == "device")
        yield reader, source


def _on_gpu(
    reader: FeatureReader, device: torch.device, share: float, *, must: bool
) -> FeatureSource:
    locations, dim = reader.manifest.locations, reader.manifest.dim
    size = 2 * reader.views * len(reader) * locations * dim
    torch.cuda.empty_cache()  # what an earlier trial of this process left is free, too
    free, total = torch.cuda.mem_get_info(device)
    room = int(_SHARE * min(free, share * total))
    if size <= room:
        return MemoryFeatures.copy_of(reader, device)
    if must:
        raise StageError(
            f"--train.cache device: the features take {size / 1e9:.1f} GB, of the GPU's free "
            f"memory {room / 1e9:.1f} GB may be used; use --train.cache ram or none"
        )
    return reader


def _bytes(folder: Path) -> int:
    return sum(entry.bytes for entry in read_manifest(folder).shards)


def _free_ram() -> int:
    """Bytes free both in the RAM disk and in memory."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min(shutil.disk_usage(RAM_DISK).free, 1024 * available)


class _NoRoomError(Exception):
    """There is no RAM disk, or too little memory for copies that are still to be made."""


@contextmanager
def _all_in_ram(folders: Sequence[Path]) -> Iterator[list[str]]:
    with ExitStack() as held:
        sizes = [_bytes(folder) for folder in folders]
        yield [
            held.enter_context(_in_ram(folder, sum(sizes[number:])))
            for number, folder in enumerate(folders)
        ]


@contextmanager
def _in_ram(folder: Path, size: int) -> Iterator[str]:
    """A copy of a folder in RAM, made by whoever comes first and removed by whoever goes last.

    Args:
        folder: What to copy.
        size: Bytes that there has to be room for, if this folder has no copy yet.
    """
    if fcntl is None or not RAM_DISK.is_dir():
        raise _NoRoomError(f"this system has no RAM disk {RAM_DISK}")
    home = RAM_DISK / f"dclip-{os.getuid()}"
    try:
        home.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _NoRoomError(told(error)) from None
    if home.lstat().st_uid != os.getuid():
        raise StageError(f"{home} belongs to another user; use --train.cache none")
    _remove_unused(home)
    with (home / f"{folder.name}.lock").open("a") as lock:
        copy = home / folder.parent.name / folder.name
        fcntl.flock(lock, fcntl.LOCK_SH)  # all who use the copy hold it, who makes one is alone
        while not (copy / MANIFEST).is_file():
            if _lock_alone(lock.fileno()):
                room = int(_SHARE * _free_ram())
                if size > room:
                    raise _NoRoomError(
                        f"the features take {size / 1e9:.1f} GB, of the free memory "
                        f"{room / 1e9:.1f} GB may be used"
                    )
                copy_features(folder, home)
            time.sleep(_POLL_SECONDS)
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits for who makes it
        try:
            yield str(copy)
        finally:
            _remove_if_unused(copy, lock.fileno())


def _remove_unused(home: Path) -> None:
    """Remove copies that a killed process left behind."""
    for path in home.glob("*.lock"):
        with path.open("a") as lock:
            for copy in home.glob(f"*/{path.stem}"):
                _remove_if_unused(copy, lock.fileno())


def _remove_if_unused(copy: Path, lock: int) -> None:
    if _lock_alone(lock):
        (copy / MANIFEST).unlink(missing_ok=True)  # first, so that what has one is whole
        shutil.rmtree(copy, ignore_errors=True)


def _lock_alone(lock: int) -> bool:
    """Exchange a shared lock for an exclusive one; if that fails, the shared one is lost too."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
