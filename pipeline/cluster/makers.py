"""Making the groups of a listing that are missing, by a pool of actors that hold a backbone."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import ray

from dclip.store.extraction import BATCH_SIZES
from dclip.words import counted
from pipeline.cluster.groups import Groups, write_arrays
from pipeline.cluster.pool import Pool
from pipeline.cluster.session import place_workers, ray_session
from pipeline.features.opened import open_backbone
from pipeline.settings.config import Config
from pipeline.settings.sections import SegmentConfig, SegmentsMlrConfig
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress

log = logging.getLogger(__name__)

Wanted: TypeAlias = SegmentConfig | SegmentsMlrConfig
Loaded = TypeVar("Loaded")
Content = TypeVar("Content")


class Maker(ABC, Generic[Loaded]):
    """A backbone that makes the arrays of groups, and threads that read a batch ahead of it.

    Args:
        config: Settings.
        wanted: Of them, precision and batch size.
        device: ``"cpu"`` or ``"cuda"``.
        threads: That read images.

    Attributes:
        done: Images done so far of each group that is under way.
    """

    def __init__(self, config: Config, wanted: Wanted, device: str, threads: int) -> None:
        self.done: dict[int, int] = {}
        self._device = device
        self._backbone = open_backbone(config, device=device)
        self._precision: Any = wanted.precision
        if self._precision == "auto":
            self._precision = "float16" if device == "cuda" else "float32"
        self._batch = wanted.batch_size or BATCH_SIZES[device]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    @abstractmethod
    def make(self, group: int) -> dict[str, np.ndarray]:
        """The arrays of one group.

        Raises:
            ImageError: An image or mask cannot be used; the message names the file.
        """

    @abstractmethod
    def read(self, row: int) -> Loaded:
        """What is needed of one image, by its position in the listing; called by threads."""

    def batches(self, rows: Sequence[int], group: int | None = None) -> Iterator[list[Loaded]]:
        """Images in batches; the next one is read meanwhile. Those of a group are counted."""
        coming: list[Future[Loaded]] = []
        for start in range(0, len(rows), self._batch):
            stop = start + self._batch
            loaded = coming or [self._pool.submit(self.read, row) for row in rows[start:stop]]
            coming = [self._pool.submit(self.read, row) for row in rows[stop : stop + self._batch]]
            yield [future.result() for future in loaded]
            if group is not None:
                self.done[group] = start + len(loaded)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)


class _Worker:
    """Actor that has a maker, and writes the files of groups."""

    def __init__(self, groups: Groups, build: Callable[..., Maker[Any]], *arguments: Any) -> None:
        device = arguments[-2]
        # a GPU has work while the next group is read; CPUs are busy with that themselves
        self._slots = threading.Semaphore(2 if device == "cuda" else 1)
        self._groups = groups
        self._maker = build(*arguments)

    def ready(self) -> None:
        """Answer as soon as everything is loaded."""

    def progress(self) -> int:
        """Images done of groups that are not finished."""
        return sum(self._maker.done.values())

    def make(self, group: int) -> None:
        """Make the file of one group."""
        with self._slots:
            try:
                write_arrays(self._groups.path(group), self._maker.make(group))
            finally:
                self._maker.done.pop(group, None)


def every_group(
    config: Config,
    wanted: Wanted,
    label: str,
    groups: Groups,
    read: Callable[[int], Content | None],
    build: Callable[..., Maker[Any]],
    arguments: Callable[[], Sequence[Any]],
) -> list[Content]:
    """What the files of all groups hold; those that are missing are made.

    Args:
        config: Settings.
        wanted: Of them, how many workers, and threads of each; None for as many as there is room.
        label: What the log calls it.
        groups: Which images, and where the files are.
        read: The content of the file of a group; None where it is missing or cannot be used.
        build: Called with ``arguments``, the device, and the number of reading threads.
        arguments: Where something is missing, says what all workers are given.

    Raises:
        StageError: An image or mask cannot be used, or a worker failed; what was made is kept.
    """
    found = [read(group) for group in range(groups.num_groups)]
    missing = [group for group, content in enumerate(found) if content is None]
    if missing:
        _make(config, wanted, label, groups, missing, build, arguments())
        for group in missing:
            found[group] = read(group)
    lost = [group for group, content in enumerate(found) if content is None]
    if lost:
        raise StageError(
            f"{groups.path(lost[0])} was made but is not to be seen; if the folder is on a network "
            "file system that caches, run the same command again"
        )
    return [content for content in found if content is not None]


def _make(
    config: Config,
    wanted: Wanted,
    label: str,
    groups: Groups,
    missing: Sequence[int],
    build: Callable[..., Maker[Any]],
    arguments: Sequence[Any],
) -> None:
    """Make the files of some groups on a pool of actors."""
    groups.folder.mkdir(parents=True, exist_ok=True)
    left = sum(len(groups.rows(group)) for group in missing)
    with (
        ray_session(config),
        progress(label, groups.num_images, "images", groups.num_images - left) as bar,
    ):
        placement = place_workers(config, wanted.workers)
        log.info(
            "%s: %s in %s by %s on %s (%s)",
            label,
            counted(left, "image"),
            counted(len(missing), "group"),
            counted(min(placement.count(), len(missing)), "worker"),
            placement.device,
            placement.why,
        )
        actor = ray.remote(max_concurrency=3, **placement.options)(_Worker)
        shared = [ray.put(each) for each in (groups, build, *arguments)]
        pool: Pool[int] = Pool(
            lambda: actor.remote(*shared, placement.device, wanted.threads or placement.cpus),
            lambda worker, group: worker.make.remote(group),
            placement.count,
        )
        finished = 0
        try:
            for event in pool.run(missing):
                if isinstance(event, int):
                    bar.show(finished + event)
                else:
                    finished += len(groups.rows(event[0]))
                    bar.show(finished)
        except StageError as error:
            raise StageError(f"{error}; what finished groups made is kept") from None
