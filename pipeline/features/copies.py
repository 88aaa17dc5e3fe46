"""Features on this machine: where they lie below the output folder, and copies of remote ones."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from dclip.store.paths import AnyPath, as_path, atomic_write
from dclip.store.shards import (
    MANIFEST,
    Manifest,
    ShardError,
    file_problem,
    read_manifest,
    shard_sizes,
)
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress

FEATURES = "features"
"""Folder below the output folder of features made here, and of copies of remote ones."""

log = logging.getLogger(__name__)


def missing_shards(folder: AnyPath, manifest: Manifest) -> list[str]:
    """Names of the shards that a folder does not have in the size its manifest says."""
    sizes = shard_sizes(folder)
    return [entry.name for entry in manifest.shards if sizes.get(entry.name) != entry.bytes]


def verified_folder(output: Path) -> Path:
    """Where an output folder keeps which shards were compared with their checksums lately."""
    return output.absolute() / "verified"


def local_folders(folders: Sequence[str], output: Path) -> list[Path]:
    """Folders of features on this machine; remote ones are copied to the output folder first.

    Raises:
        StageError: They are missing.
    """
    try:
        return [
            place if isinstance(place, Path) else copy_features(place, output / FEATURES)
            for place in map(as_path, folders)
        ]
    except ShardError as error:
        raise StageError(str(error)) from None


def place_of_copy(folder: AnyPath, cache: Path) -> Path:
    """Where the copy of a folder of features lies."""
    return cache / folder.parent.name / folder.name


def copy_features(folder: AnyPath, cache: Path) -> Path:
    """A copy of a folder of features, which copies what is missing or different in an earlier one.

    The manifest comes last, so that a copy that has one is whole. A whole copy serves where its
    source is out of reach.
    """
    target = place_of_copy(folder, cache)
    try:
        copied = read_manifest(target)
    except ShardError:
        copied = None
    try:
        manifest = read_manifest(folder)
    except (OSError, ShardError) as error:
        if copied is None:
            raise
        log.warning("features: %s; the copy at %s is used", error, target)
        manifest = copied
    changed = set(manifest.shards) - set(copied.shards) if copied else set()
    missing = sorted({*missing_shards(target, manifest), *(entry.name for entry in changed)})
    if copied != manifest:
        (target / MANIFEST).unlink(missing_ok=True)
        missing += [n for n, sha in manifest.files.items() if file_problem(target / n, None, sha)]
        missing.append(MANIFEST)
    else:
        missing += [name for name in manifest.files if not (target / name).is_file()]
    if missing:
        log.info("features: copying %d files of %s to %s", len(missing), folder, target)
        target.mkdir(parents=True, exist_ok=True)
        with progress("copy", len(missing), "files") as bar:
            for name in missing:
                with atomic_write(target / name) as temporary:
                    if isinstance(folder, Path):
                        shutil.copyfile(folder / name, temporary)
                    else:
                        (folder / name).get(temporary)
                bar.advance(1)
    return target
