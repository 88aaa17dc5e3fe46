"""A listing in groups of images, each with a file of arrays that is made once, by a pool of actors.

A stage that was stopped goes on with the groups whose files are missing or damaged.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dclip.words import counted
from pipeline.config import Config
from pipeline.errors import StageError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Groups:
    """Which images are worked on, and where the results go.

    Attributes:
        name: What is made, with a hash of all that shapes it.
        folder: Of the files.
        num_images: How many images, from the first on.
        group_size: Images a file.
    """

    name: str
    folder: Path
    num_images: int
    group_size: int

    @property
    def num_groups(self) -> int:
        """Number of files."""
        return -(-self.num_images // self.group_size)

    def rows(self, group: int) -> range:
        """Positions in the listing that belong to one group."""
        start = group * self.group_size
        return range(start, min(start + self.group_size, self.num_images))

    def path(self, group: int) -> Path:
        """File of one group."""
        return self.folder / f"group-{group:06d}.npz"


class Maker(Protocol):
    """Whoever makes the arrays of groups.

    Attributes:
        done: Images done so far of each group that is under way.
    """

    done: dict[int, int]

    def make(self, group: int) -> "dict[str, np.ndarray]":
        """The arrays of one group."""
        ...


def write_arrays(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write the arrays of a group; the file is whole or absent."""
    import numpy as np

    from dclip.paths import atomic_write

    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> "dict[str, np.ndarray] | None":
    """The arrays of a group; None if they are not there or cannot be used."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be used (%s); it is made anew", path, error)
        return None


class _Worker:
    """Actor that has a maker, and writes the files of groups."""

    def __init__(self, groups: Groups, build: Callable[..., Maker], *arguments: Any) -> None:
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
            write_arrays(self._groups.path(group), self._maker.make(group))


def make_groups(
    config: Config,
    label: str,
    groups: Groups,
    missing: Sequence[int],
    build: Callable[..., Maker],
    arguments: Sequence[Any],
    *,
    workers: int | None,
    threads: int | None,
) -> None:
    """Make the files of some groups on a pool of actors.

    Args:
        config: Settings.
        label: What the log calls it.
        groups: Which images, and where the files go.
        missing: Groups to make.
        build: Called with ``arguments``, the device, and the number of reading threads.
        arguments: Shared by all actors.
        workers: Number of actors; None for as many as there is room for.
        threads: That read in each actor; None for one a CPU of it.

    Raises:
        StageError: A group could not be made; the files of finished ones are kept.
    """
    from pipeline import cluster
    from pipeline.pool import Pool
    from pipeline.progress import progress

    groups.folder.mkdir(parents=True, exist_ok=True)
    left = sum(len(groups.rows(group)) for group in missing)
    with (
        cluster.ray_session(config),
        progress(label, groups.num_images, "images", groups.num_images - left) as bar,
    ):
        import ray

        place = cluster.place_workers(config, workers)
        log.info(
            "%s: %s in %s by %s on %s (%s)",
            label,
            counted(left, "image"),
            counted(len(missing), "group"),
            counted(min(place.count(), len(missing)), "worker"),
            place.device,
            place.why,
        )
        actor = ray.remote(max_concurrency=3, **place.options)(_Worker)
        shared = [ray.put(each) for each in (groups, build, *arguments)]
        pool: Pool[int] = Pool(
            lambda: actor.remote(*shared, place.device, threads or place.cpus),
            lambda worker, group: worker.make.remote(group),
            place.count,
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
