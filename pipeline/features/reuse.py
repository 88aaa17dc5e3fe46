"""Images that finished shards have already: found, looked at, and written into shards of a plan."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dclip.store.paths import AnyPath
from dclip.store.shards import (
    Failure,
    ImageRecord,
    ShardError,
    Sidecar,
    check_shard,
    label_columns,
    read_manifest,
    read_records,
    read_sidecars,
    shard_name,
    write_shard,
)
from dclip.store.verified import FileState, file_state
from dclip.words import counted
from pipeline.features.plan import (
    FeaturePlan,
    is_one_space,
    require_writable,
    root_of_images,
    space_of,
)
from pipeline.settings.config import Config
from pipeline.terminal.progress import progress

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """One shard to make.

    Attributes:
        plan: Position of its plan in the list of plans.
        number: Number of the shard.
        name: What messages call the plan.
    """

    plan: int
    number: int
    name: str

    def __str__(self) -> str:
        return f"shard {self.number} of {self.name}"


class Made(NamedTuple):
    """What the driver has to know of a shard that was just written.

    Attributes:
        failures: Images that could not be read.
        sha256: Checksum of the bytes as they were written.
        state: State of its file then; None on an object store.
    """

    failures: Sequence[Failure]
    sha256: str
    state: FileState | None


class Source(NamedTuple):
    """A finished shard that images may be taken over from."""

    folder: AnyPath
    number: int
    sidecar: Sidecar


def earlier(config: Config, plan: FeaturePlan) -> dict[str, Source]:
    """Images of folders that have another listing or limit, all else being equal.

    An image is known by its key, which means the same image only in one split of one data set.
    Unless the mode is extend, folders count only that have the same images, be it with other
    classes or labels.
    """
    found: dict[str, Source] = {}
    parent = plan.folder.parent
    names = sorted(path.name for path in parent.iterdir()) if parent.is_dir() else []
    kept = ("storage", "view", "view_seed", "augmentation")
    wanted, images = config.extract.precision, plan.images
    for folder in (parent / name for name in names if name != plan.folder.name):
        try:
            manifest = read_manifest(folder)
        except (ShardError, NotADirectoryError):
            continue
        ours = (config.dataset, root_of_images(config), plan.listing.split)
        theirs = (manifest.dataset, manifest.root, manifest.split)
        if not is_one_space((plan.feature_space, plan.formerly), space_of(manifest)):
            continue
        if ours != theirs or any(manifest.spec.get(name) != plan.source.get(name) for name in kept):
            continue
        if config.extract.mode != "extend" and not (images and images == manifest.images):
            continue
        for number, sidecar in enumerate(
            read_sidecars(folder, len(manifest.shards), manifest.fingerprint)
        ):
            if sidecar is not None and wanted in ("auto", *sidecar.compute.split()):
                found |= dict.fromkeys(sidecar.keys, Source(folder, number, sidecar))
    if found:
        log.info("extract: %s: taken over: up to %s", plan.name, counted(len(found), "image"))
    return found


def sources_of(plan: FeaturePlan, number: int, found: Mapping[str, Source]) -> list[Source]:
    """The shards that hold images of one shard."""
    chosen: dict[tuple[str, int], Source] = {}
    for row in plan.rows(number):
        source = found.get(plan.listing.key(row))
        if source is not None:
            chosen[str(source.folder), source.number] = source
    return list(chosen.values())


def take_over_all(
    plans: Sequence[FeaturePlan],
    tasks: Sequence[Task],
    sources: Mapping[int, Mapping[str, Source]],
) -> dict[Task, Made]:
    """Make shards all of whose images are in finished ones, as far as those are sound."""
    ready: dict[Task, list[Source]] = {}
    for task in tasks:
        plan, images = plans[task.plan], sources.get(task.plan, {})
        if all(plan.listing.key(row) in images for row in plan.rows(task.number)):
            ready[task] = sources_of(plan, task.number, images)
    if not ready:
        return {}
    for position in {task.plan for task in ready}:
        require_writable(plans[position].folder)
    taken: dict[Task, Made] = {}
    total = sum(len(plans[task.plan].rows(task.number)) for task in ready)
    with progress("take over", total, "images") as bar:
        for task, found in ready.items():
            plan = plans[task.plan]
            made = take_over(plan, task.number, found)
            if made is not None:
                taken[task] = made
            bar.advance(len(plan.rows(task.number)))
    return taken


def take_over(plan: FeaturePlan, number: int, sources: Sequence[Source]) -> Made | None:
    """Write one shard from finished ones alone; no backbone is needed.

    Args:
        plan: What is made.
        number: Which shard of it.
        sources: Shards that hold its images; damaged ones are passed over.

    Returns:
        What was written; None, and nothing is, where one of its images is in none of them.

    Raises:
        OSError: Shards cannot be reached or written.
    """
    sound = sound_ones(sources)
    held = {key for source in sound for key in source.sidecar.keys}
    if not held.issuperset(plan.listing.key(row) for row in plan.rows(number)):
        return None
    sidecar = write_shard(
        plan.folder,
        number,
        shard_records(plan, number, sound),
        [],
        fingerprint=plan.fingerprint,
        compute=", ".join(sorted({source.sidecar.compute for source in sound})),
        seconds={},
    )
    return made_of(plan, number, sidecar)


def made_of(plan: FeaturePlan, number: int, sidecar: Sidecar) -> Made:
    """What the driver has to know of a shard whose file was just written."""
    path = plan.folder / shard_name(number)
    state = file_state(path) if isinstance(path, Path) else None
    return Made(sidecar.failures, sidecar.sha256, state)


def shard_records(
    plan: FeaturePlan,
    number: int,
    sources: Sequence[Source],
    compute: Callable[[Sequence[int]], Iterator[ImageRecord]] | None = None,
) -> Iterator[ImageRecord]:
    """Images of a shard in the order of the listing: taken over where possible, else computed.

    Args:
        plan: What is made.
        number: Which shard of it.
        sources: Sound shards, whose images are taken over.
        compute: Gives the records of some rows in their order, but for images that cannot be read;
            None where all of them are in the sources.
    """
    listing = plan.listing
    keys = {listing.key(row): row for row in plan.rows(number)}
    known = {
        keys[record.key]: record
        for source in sources
        for record in read_records(source.folder, source.number, source.sidecar, keys)
    }
    rows = [row for row in plan.rows(number) if row not in known]
    computed = iter(()) if compute is None else compute(rows)
    coming: ImageRecord | None = None
    for row in plan.rows(number):
        if row in known:
            positives, unknown = label_columns(_labels(listing, row))
            yield replace(known[row], index=row, labels=positives, unknown=unknown)
            continue
        coming = coming or next(computed, None)
        if coming is not None and coming.index == row:  # else it could not be read
            yield coming
            coming = None


def _labels(listing: Any, row: int) -> np.ndarray:
    listed = getattr(listing, "labels", None)
    labels: np.ndarray = listing.read(row).labels if listed is None else listed[row]
    return labels


def sound_ones(sources: Sequence[Source]) -> list[Source]:
    """Those that are as they were written: a copy of damaged bytes would get its own checksum."""
    return [source for source in sources if not check_shard(*source)]
