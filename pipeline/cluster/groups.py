"""A listing in groups of images, each with a file of arrays that is made once.

A stage that was stopped goes on with the groups whose files are missing or damaged;
`pipeline.cluster.makers` makes them.
"""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dclip.store.paths import atomic_write

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


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays of a group; the file is whole or absent."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a group; None if they are not there or cannot be used."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be used (%s); it is made anew", path, error)
        return None
