"""Images to feature shards: what the frozen backbone sees, computed once.

Ray actors load the backbone once each and make one deterministic shard per task; inside each,
threads decode ahead of the network and shards are written as features come. A shard appears under
its final name only when it is whole; the manifest comes last. Starting again finishes what is
missing and leaves alone what is there.
"""

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dclip.words import counted
from pipeline.features.copies import FEATURES, place_of_copy, verified_folder
from pipeline.features.plan import (
    FeaturePlan,
    complete_manifest,
    describe_backbone,
    finished,
    open_labelled,
    own_manifest,
    plan_features,
)
from pipeline.features.preflight import absent_note, one_text_note, require_images
from pipeline.settings.config import Config
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import StageError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from dclip.store.extraction import Extractor
    from dclip.store.paths import AnyPath
    from dclip.store.shards import Failure, ImageRecord, Manifest, Sidecar
    from dclip.store.verified import FileState

log = logging.getLogger(__name__)


_ABANDONED_SECONDS = 3600
_ALL_UNREADABLE = 256  # images, after which a run that could read none of them ends
_SAMPLE = 8  # images a dry run times where no shard is there to tell the speed


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

    failures: "Sequence[Failure]"
    sha256: str
    state: "FileState | None"


class Source(NamedTuple):
    """A finished shard that images may be taken over from."""

    folder: "AnyPath"
    number: int
    sidecar: "Sidecar"


def make_shard(
    plan: FeaturePlan,
    number: int,
    extractor: "Extractor",
    sources: Sequence[Source] = (),
    done: dict[Any, int] | None = None,
) -> "Sidecar":
    """Read, encode and write the images of one shard; unreadable ones are recorded and left out.

    Args:
        plan: What is made.
        number: Which shard of it.
        extractor: The backbone.
        sources: Shards whose images are taken over instead of computed; damaged ones are passed
            over.
        done: Number of finished images of the shard, kept up to date under its number.

    Raises:
        OSError: Images or shards cannot be reached or written.
    """
    from dataclasses import asdict

    from dclip.store.extraction import Seconds
    from dclip.store.shards import Failure, write_shard

    seconds, started = Seconds(), time.perf_counter()
    failures: list[Failure] = []
    spent: dict[str, float] = {}

    def records() -> "Iterator[ImageRecord]":
        found = _records(plan, number, extractor, _sound(sources), failures, seconds)
        for count, record in enumerate(found, start=1):
            yield record
            if done is not None:
                done[plan.folder, number] = count
        spent.update(asdict(seconds), total=time.perf_counter() - started - seconds.queue)
        del spent["queue"]  # the time of another shard

    try:
        return write_shard(
            plan.folder,
            number,
            records(),
            failures,
            fingerprint=plan.fingerprint,
            compute=extractor.compute,
            seconds=spent,
        )
    finally:
        if done is not None:
            done.pop((plan.folder, number), None)


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
    from dclip.store.shards import write_shard

    sound = _sound(sources)
    held = {key for source in sound for key in source.sidecar.keys}
    if not held.issuperset(plan.listing.key(row) for row in plan.rows(number)):
        return None
    sidecar = write_shard(
        plan.folder,
        number,
        _records(plan, number, None, sound, [], None),
        [],
        fingerprint=plan.fingerprint,
        compute=", ".join(sorted({source.sidecar.compute for source in sound})),
        seconds={},
    )
    return _made(plan, number, sidecar)


def _made(plan: FeaturePlan, number: int, sidecar: "Sidecar") -> Made:
    from dclip.store.shards import shard_name
    from dclip.store.verified import file_state

    path = plan.folder / shard_name(number)
    state = file_state(path) if isinstance(path, Path) else None
    return Made(sidecar.failures, sidecar.sha256, state)


def _sound(sources: Sequence[Source]) -> list[Source]:
    """Those that are as they were written: a copy of damaged bytes would get its own checksum."""
    from dclip.store.shards import check_shard

    return [source for source in sources if not check_shard(*source)]


def _records(
    plan: FeaturePlan,
    number: int,
    extractor: "Extractor | None",
    sources: Sequence[Source],
    failures: list[Any],
    seconds: Any,
) -> "Iterator[ImageRecord]":
    """Images of a shard in the order of the listing: taken over where possible, else computed."""
    from dataclasses import replace

    from dclip.store.extraction import columns
    from dclip.store.shards import read_records

    listing = plan.listing
    keys = {listing.key(row): row for row in plan.rows(number)}
    known = {
        keys[record.key]: record
        for source in sources
        for record in read_records(source.folder, source.number, source.sidecar, keys)
    }
    rows = [row for row in plan.rows(number) if row not in known]
    computed: Iterator[ImageRecord] = iter(())
    if extractor is not None:
        computed = extractor.records(
            listing,
            rows,
            view=plan.view,
            seed=plan.view_seed,
            storage=plan.storage,
            failures=failures,
            seconds=seconds,
        )
    coming: ImageRecord | None = None
    for row in plan.rows(number):
        if row in known:
            positives, unknown = columns(_labels(listing, row))
            yield replace(known[row], index=row, labels=positives, unknown=unknown)
            continue
        coming = coming or next(computed, None)
        if coming is not None and coming.index == row:  # else it could not be read
            yield coming
            coming = None


def _labels(listing: Any, row: int) -> "np.ndarray":
    listed = getattr(listing, "labels", None)
    labels: np.ndarray = listing.read(row).labels if listed is None else listed[row]
    return labels


class Extracted(NamedTuple):
    """What became of one plan."""

    plan: FeaturePlan
    manifest: "Manifest"
    made: int
    is_new: bool


def extract(config: Config, plans: Sequence[FeaturePlan]) -> list[Extracted]:
    """Make what is missing of some plans.

    Raises:
        StageError: Too many images could not be read, or a worker failed.
    """
    sources: dict[int, Mapping[str, Source]] = {}
    tasks: list[Task] = []
    complete: list[Manifest | None] = []
    made: Counter[int] = Counter()
    written: dict[Task, Made] = {}
    for position, plan in enumerate(plans):
        if plan.num_images == 0:
            raise StageError(f"split {plan.listing.split!r} of {config.dataset} holds no images")
        anew = config.extract.mode == "overwrite"
        complete.append(None if anew else complete_manifest(plan))
        manifest = complete[position]
        if manifest is not None:
            _check_origin(config, manifest, plan)
            _check_precision(config, manifest.compute, plan)
        if manifest is not None and not config.extract.retry_failed:
            continue
        there: list[Sidecar | None] = [None] * plan.num_shards if anew else finished(plan)
        _check_precision(config, {one.compute for one in there if one is not None}, plan)
        missing = _to_make(config, there)
        if config.extract.retry_failed:
            sources[position] = {
                key: Source(plan.folder, number, sidecar)
                for number, sidecar in enumerate(there)
                if sidecar is not None and sidecar.failures
                for key in sidecar.keys
            }
        if missing and not anew:
            sources[position] = {**_earlier(config, plan), **sources.get(position, {})}
        tasks += [Task(position, number, plan.name) for number in missing]
        made[position] = len(missing)
    if tasks:
        _tell(config, plans)
        written |= _take_over(plans, tasks, sources)
        tasks = [task for task in tasks if task not in written]
    if tasks:
        for plan in {task.plan: plans[task.plan] for task in tasks}.values():
            require_images(plan.listing, plan.num_images)
        written |= _make_shards(config, plans, tasks, sources)
    results = []
    for position, (plan, manifest) in enumerate(zip(plans, complete, strict=True)):
        is_new = manifest is None or made[position] > 0
        if manifest is None or is_new:
            ours = {task.number: one for task, one in written.items() if task.plan == position}
            manifest = _publish(config, plan, ours)
        else:
            log.info("extract: nothing to do, %s is complete", plan.folder)
        results.append(Extracted(plan, manifest, made[position], is_new))
    return results


def _tell(config: Config, plans: Sequence[FeaturePlan]) -> None:
    """Say once for each split how it was read, and what will come of its class names."""
    for plan in plans:
        if plan.view:
            continue
        for note in plan.notes:
            log.info("extract: %s: %s", plan.name, note)
        if note := _absent(config, plan):
            is_train = plan.listing.split == config.train_split
            log.log(logging.WARNING if is_train else logging.INFO, "extract: %s", note)
    if note := one_text_note(plans[0].listing.class_names):
        log.warning("extract: %s", note)


def _absent(config: Config, plan: FeaturePlan) -> str:
    """Which classes are not to be learnt from the training split, or scored on the test split."""
    if plan.listing.split == config.train_split:
        return absent_note(plan.listing, "learn from")
    if plan.listing.split != config.test_split:
        return ""
    note = absent_note(plan.listing, "be scored on")
    return note and f"{note}; mAP is over the others"


def _take_over(
    plans: Sequence[FeaturePlan],
    tasks: Sequence[Task],
    sources: Mapping[int, Mapping[str, Source]],
) -> dict[Task, Made]:
    """Make shards all of whose images are in finished ones, as far as those are sound."""
    from pipeline.terminal.progress import progress

    ready: dict[Task, list[Source]] = {}
    for task in tasks:
        plan, images = plans[task.plan], sources.get(task.plan, {})
        if all(plan.listing.key(row) in images for row in plan.rows(task.number)):
            ready[task] = _sources(plan, task.number, images)
    if not ready:
        return {}
    for position in {task.plan for task in ready}:
        _check_writable(plans[position].folder)
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


def _to_make(config: Config, there: "Sequence[Sidecar | None]") -> list[int]:
    """Numbers of the shards that the settings want made, of those that are there."""
    return [
        number
        for number, sidecar in enumerate(there)
        if sidecar is None
        or config.extract.mode == "overwrite"
        or (config.extract.retry_failed and sidecar.failures)
    ]


def _check_precision(config: Config, there: Iterable[str], plan: FeaturePlan) -> None:
    """Refuse to mix what was asked for with shards of another precision."""
    wanted = config.extract.precision
    others = sorted(compute for compute in there if wanted not in compute.split())
    if wanted != "auto" and others:
        raise UsageError(
            f"{plan.folder} has shards computed in {', '.join(others)}; leave out "
            f"--extract.precision {wanted}, or make all of them anew with --mode overwrite"
        )


def _check_origin(config: Config, manifest: "Manifest", plan: FeaturePlan) -> None:
    """Say so if features that stand are of images in another place."""
    ours, theirs = (config.dataset, _root(config)), (manifest.dataset, manifest.root)
    if ours != theirs and manifest.root is not None:  # None: of an earlier version
        log.warning(
            "extract: %s was made from the images of %s in %s, not of %s in %s; if they differ, "
            "use another --features folder, or --mode overwrite",
            plan.folder, theirs[0], theirs[1] or "-", ours[0], ours[1] or "-",
        )  # fmt: skip


def _remove(plan: FeaturePlan, shards: Iterable[int]) -> None:
    """Delete shards; the manifest first, so that the folder does not pass for complete."""
    from dclip.store.shards import MANIFEST, shard_name

    names = [Path(shard_name(number)) for number in shards]
    for name in [MANIFEST, *(str(n.with_suffix(s)) for n in names for s in (".json", ".tar"))]:
        (plan.folder / name).unlink(missing_ok=True)


def _root(config: Config) -> str:
    """Where the images of the settings lie; empty if the name of the data set says it."""
    return "" if config.root is None else str(config.root.absolute())


def _earlier(config: Config, plan: FeaturePlan) -> dict[str, Source]:
    """Images of folders that have another listing or limit, all else being equal.

    An image is known by its key, which means the same image only in one split of one data set.
    Unless the mode is extend, folders count only that have the same images, be it with other
    classes or labels.
    """
    from dclip.store.shards import ShardError, read_manifest, read_sidecars

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
        ours = (plan.feature_space, config.dataset, _root(config), plan.listing.split)
        theirs = (manifest.feature_space, manifest.dataset, manifest.root, manifest.split)
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


def _sources(plan: FeaturePlan, number: int, found: Mapping[str, Source]) -> list[Source]:
    """The shards that hold images of one shard."""
    chosen: dict[tuple[str, int], Source] = {}
    for row in plan.rows(number):
        source = found.get(plan.listing.key(row))
        if source is not None:
            chosen[str(source.folder), source.number] = source
    return list(chosen.values())


def _make_shards(
    config: Config,
    plans: Sequence[FeaturePlan],
    tasks: Sequence[Task],
    sources: Mapping[int, Mapping[str, Source]],
) -> dict[Task, Made]:
    """Make shards on a pool of actors, results in any order."""
    from pipeline.cluster import session as cluster
    from pipeline.cluster.pool import Pool
    from pipeline.terminal.progress import progress

    changing = [plans[position] for position in sorted({task.plan for task in tasks})]
    for plan in changing:
        _check_writable(plan.folder)
    images = sum(len(plans[task.plan].rows(task.number)) for task in tasks)
    with cluster.ray_session(config), progress("extract", images, "images") as bar:
        import ray

        place = cluster.place_workers(config, config.extract.workers)
        for plan in changing:
            # the manifest speaks of shards that are about to change
            _remove(plan, range(plan.num_shards) if config.extract.mode == "overwrite" else ())
        log.info(
            "extract: %s to make by %s on %s (%s)",
            counted(len(tasks), "shard"),
            counted(min(place.count(), len(tasks)), "worker"),
            place.device,
            place.why,
        )
        threads = config.extract.threads or place.cpus  # beside those of the network
        actor = ray.remote(max_concurrency=3, **place.options)(_Worker)
        shared = [ray.put(plan) for plan in plans]

        def submit(worker: Any, task: Task) -> Any:
            found = _sources(plans[task.plan], task.number, sources.get(task.plan, {}))
            return worker.make.remote(shared[task.plan], task.number, found)

        pool: Pool[Task] = Pool(
            lambda: actor.remote(config, place.device, threads), submit, place.count
        )
        finished_images, unreadable, nothing = 0, 0, ""
        written: dict[Task, Made] = {}
        try:
            for event in pool.run(tasks):
                if isinstance(event, int):
                    bar.show(finished_images + event)
                    continue
                task, made = event
                written[task] = made
                failures = made.failures
                unreadable += len(failures)
                finished_images += len(plans[task.plan].rows(task.number))
                if unreadable == finished_images >= _ALL_UNREADABLE:
                    nothing = (
                        f"none of the first {unreadable} images can be read (first: "
                        f"{failures[0].key}: {failures[0].error}); are they where --root says? "
                        "Once they are, add --retry-failed"
                    )
                    break
                bar.show(finished_images, f"{unreadable} unreadable" if unreadable else "")
        except StageError as error:
            raise StageError(f"a worker failed: {error}; finished shards are kept") from None
        if nothing:
            raise StageError(nothing)
    return written


def _check_writable(folder: "AnyPath") -> None:
    """Find out before any work whether features can be written; a local folder is made.

    Raises:
        OSError: They cannot.
    """
    from dclip.store.paths import write_text

    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        return
    probe = folder / "writable"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write features to {folder}: {error}") from None


def _open_extractor(
    config: Config,
    device: str,
    *,
    batch_size: int | None,
    threads: int = 1,
    compile: bool = False,  # noqa: A002 - as the extractor has it
) -> "Extractor":
    """The backbone of the settings on a device, with threads that feed it."""
    from dclip.store.extraction import Extractor
    from pipeline.features.opened import open_backbone

    return Extractor(
        open_backbone(config, device=device),
        device=device,
        kind=config.extract.kind,
        precision=config.extract.precision,
        batch_size=batch_size,
        threads=threads,
        compile=compile,
    )


class _Worker:
    """Actor that holds the backbone and makes shards."""

    def __init__(self, config: Config, device: str, threads: int) -> None:
        self._done: dict[Any, int] = {}
        # the network has work while another shard is read or written
        self._slots = threading.Semaphore(2)
        self._extractor = _open_extractor(
            config,
            device,
            batch_size=config.extract.batch_size,
            threads=threads,
            compile=config.extract.compile,
        )

    def ready(self) -> None:
        """Answer as soon as the backbone is loaded."""

    def progress(self) -> int:
        """Images done of shards that are not finished."""
        return sum(self._done.values())

    def make(self, plan: FeaturePlan, number: int, sources: Sequence[Source]) -> Made:
        """Make one shard."""
        with self._slots:
            sidecar = make_shard(plan, number, self._extractor, sources, self._done)
            return _made(plan, number, sidecar)


def _publish(config: Config, plan: FeaturePlan, written: Mapping[int, Made]) -> "Manifest":
    """Write text features, the samples table, the failures, and last the manifest.

    Args:
        config: The settings.
        plan: All of whose shards are finished.
        written: What was just written, by number of the shard: nobody has to read that again.
    """
    from dclip import encode_class_names, encode_prompt_pairs
    from dclip.store import shards
    from dclip.store.paths import write_text
    from dclip.store.reader import write_text_features
    from dclip.store.verified import Verified
    from dclip.templates import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE
    from pipeline.features.opened import open_backbone
    from pipeline.records.provenance import git_commit

    there = finished(plan)
    if None in there:
        raise StageError(
            f"shard {there.index(None)} of {plan.folder} was made but is not to be seen; if the "
            "folder is on a network file system that caches, run the same command again"
        )
    sidecars = [sidecar for sidecar in there if sidecar is not None]
    failures = [failure for sidecar in sidecars for failure in sidecar.failures]
    listed = plan.folder / shards.FAILURES
    write_text(listed, "".join(failure.model_dump_json() + "\n" for failure in failures))
    good = plan.num_images - len(failures)
    if failures:
        named = "; ".join(f"{failure.key}: {failure.error}" for failure in failures[:5])
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        text = f"{len(failures)} of {plan.num_images} images left out: {named}{more}"
        log.warning("extract: %s: %s (all in %s)", plan.name, text, listed)
    if len(failures) > config.extract.max_failures * plan.num_images or good == 0:
        raise StageError(
            f"{len(failures)} of {plan.num_images} images of {plan.name!r} are unreadable (first: "
            f"{failures[0].key}: {failures[0].error}; all in {listed}); --extract.max-failures "
            f"allows {config.extract.max_failures:g}. Shards are kept: repair the images and add "
            "--retry-failed, or raise it"
        )
    backbone = open_backbone(config)
    class_names = plan.listing.class_names
    write_text_features(
        plan.folder / shards.TEXT,
        encode_prompt_pairs(backbone, class_names).float().cpu(),
        encode_class_names(backbone, class_names).float().cpu(),
        {
            "class_names": list(class_names),
            "positive": POSITIVE_TEMPLATE,
            "negative": NEGATIVE_TEMPLATE,
            "zero_shot": [ZERO_SHOT_TEMPLATE],
        },
    )
    shards.write_samples(plan.folder / shards.SAMPLES, sidecars)
    grid = backbone.grid(backbone.resolution, backbone.resolution)
    seconds: Counter[str] = Counter()
    for sidecar in sidecars:
        seconds.update(sidecar.seconds)
    manifest = shards.Manifest(
        format=shards.FORMAT,
        fingerprint=plan.fingerprint,
        feature_space=plan.feature_space,
        dataset=config.dataset,
        root=_root(config),
        split=plan.listing.split,
        class_names=list(class_names),
        num_images=good,
        kind=plan.space["kind"],
        view=plan.view,
        storage=plan.storage,
        locations=grid[0] * grid[1] + int(backbone.include_global_token),
        dim=backbone.embed_dim,
        grid=grid,
        include_global_token=backbone.include_global_token,
        spec={"backbone_name": backbone.name, **plan.space, **plan.source},
        compute=sorted({sidecar.compute for sidecar in sidecars}),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        shards=[
            shards.ShardEntry(
                name=shards.shard_name(n),
                count=s.count,
                bytes=s.bytes,
                sha256=s.sha256,
                sidecar=shards.sidecar_digest(s),
            )
            for n, s in enumerate(sidecars)
        ],
        failures=failures,
        files={
            name: shards.file_digest(plan.folder / name)
            for name in (shards.TEXT, shards.SAMPLES, shards.FAILURES)
        },
        commit=git_commit(),
        images=plan.images,
        notes=list(plan.notes),
    )
    write_text(plan.folder / shards.MANIFEST, manifest.model_dump_json(indent=1))
    if isinstance(plan.folder, Path) and written:
        sound = Verified(verified_folder(config.output), plan.folder, manifest)
        for number, made in written.items():
            if made.sha256 == manifest.shards[number].sha256:
                sound.add(manifest.shards[number], made.state)
        sound.write()
    if isinstance(plan.folder, Path):
        for temporary in plan.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                # of workers that were killed; younger ones may be another command's
                if time.time() - temporary.stat().st_mtime > _ABANDONED_SECONDS:
                    temporary.unlink()
    return manifest


def verify(plans: Sequence[FeaturePlan], output: Path, *, repair: bool) -> None:
    """Read every byte of all shards and compare it with the checksum it was written with.

    Whatever was found before does not count, and what is found now is kept for other commands.

    Args:
        plans: What to look at.
        output: The output folder.
        repair: Delete what is damaged, to be made again, instead of raising.

    Raises:
        StageError: A shard is damaged or missing; the message names the first ones.
    """
    from concurrent.futures import ThreadPoolExecutor

    from dclip.store.shards import check_shard, file_problem, shard_name, sidecar_digest
    from dclip.store.verified import Verified, forget, settled_state
    from pipeline.terminal.progress import progress

    def look(plan: FeaturePlan, number: int, sidecar: "Sidecar | None") -> tuple[str, Any]:
        path = plan.folder / shard_name(number)
        before = None
        if isinstance(path, Path) and path.is_file():
            before = settled_state(path)
            _drop_from_memory(path)
        return check_shard(plan.folder, number, sidecar), before

    lines: list[str] = []
    records = verified_folder(output)
    for plan in plans:
        # first, in case this is stopped; of a remote folder, what is known of its copy
        local = plan.folder
        if not isinstance(local, Path):
            local = place_of_copy(local, output / FEATURES)
        forget(records, local)
        sidecars = finished(plan)
        manifest = own_manifest(plan)
        entries = dict(enumerate(manifest.shards if manifest else []))
        damaged: list[int] = []
        found: list[str] = []
        sound = (
            Verified(records, plan.folder, manifest)
            if manifest is not None and isinstance(plan.folder, Path)
            else None
        )
        with (
            progress(f"verify {plan.name}", plan.num_shards, "shards") as bar,
            ThreadPoolExecutor(4) as threads,
        ):
            checks = threads.map(look, [plan] * len(sidecars), range(len(sidecars)), sidecars)
            for number, (problem, before) in enumerate(checks):
                sidecar, entry = sidecars[number], entries.get(number)
                if not problem and sidecar is not None and entry is not None:
                    if entry.sidecar and entry.sidecar != sidecar_digest(sidecar):
                        problem = "its sidecar is not the one that the manifest speaks of"
                    elif (entry.sha256, entry.bytes) != (sidecar.sha256, sidecar.bytes):
                        problem = "it is not the one that the manifest speaks of"
                if problem:
                    damaged.append(number)
                    found.append(f"{plan.folder / shard_name(number)}: {problem}")
                elif sound is not None and entry is not None:
                    sound.add(entry, before)
                bar.advance(1)
        if not damaged:
            if manifest is None:
                found.append(f"{plan.folder}: the manifest is missing or of another run")
            else:
                for name, sha256 in manifest.files.items():
                    problem = file_problem(plan.folder / name, None, sha256)
                    if problem:
                        found.append(f"{plan.folder / name}: {problem}")
        if sound is not None:
            sound.write()
        if repair and found:
            _remove(plan, damaged)
        lines += found
    if lines and not repair:
        shown = "\n  ".join(lines[:10]) + (f"\n  and {len(lines) - 10} more" * (len(lines) > 10))
        raise StageError(f"damaged or missing:\n  {shown}\n--repair makes them again")
    for line in lines:
        log.warning("extract: %s; it is made again", line)


def _drop_from_memory(path: Path) -> None:
    """Have the system read a file from its disk again, not from what it keeps of it in memory."""
    if hasattr(os, "posix_fadvise"):  # elsewhere there is no way to ask
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def all_plans(config: Config) -> list[FeaturePlan]:
    """Plans of all splits that the settings ask for, views of the training split after the rest."""
    if config.extract.verify and config.extract.mode == "overwrite":
        raise UsageError("--verify looks at what is there, --mode overwrite deletes it; choose one")
    for split in splits(config):  # before a backbone is loaded for any
        open_labelled(config, split)
    plans = [plan_features(config, split) for split in splits(config)]
    return plans + [view for plan in plans for view in plan.views]


def splits(config: Config) -> list[str]:
    """Splits that the settings ask for."""
    if config.extract.split is not None:
        return [config.extract.split]
    return list(dict.fromkeys([config.train_split, config.test_split]))


def run(config: Config) -> Report:
    """Make the features of all splits the settings ask for; the report names their folders."""
    started = time.perf_counter()
    plans = all_plans(config)
    report: Report = {"stage": "extract", "splits": {}}
    if config.extract.verify or config.extract.repair:
        verify(plans, config.output, repair=config.extract.repair)
        if not config.extract.repair:
            shards = sum(plan.num_shards for plan in plans)
            sys.stdout.write(f"as written: {counted(shards, 'shard')}\n")
            return {**report, "verified": shards}
    results = extract(config, plans)
    for plan, manifest, made, _ in results:
        row = {
            "folder": str(plan.folder),
            "images": manifest.num_images,
            "unreadable": len(manifest.failures),
            "shards_made": made,
            "bytes": sum(entry.bytes for entry in manifest.shards),
            "shape": [manifest.locations, manifest.dim],
            "feature_space": manifest.feature_space,
            "seconds": manifest.seconds,
        }
        report["splits"][plan.name] = row
        lost = f", {row['unreadable']} unreadable" if row["unreadable"] else ""
        sys.stdout.write(
            f"{plan.name}: {counted(manifest.num_images, 'image')}{lost}, {manifest.locations} x "
            f"{manifest.dim} {manifest.storage}, {made} of {len(manifest.shards)} shards made now, "
            f"at {plan.folder}\n"
        )
    report["seconds"] = round(time.perf_counter() - started, 2)
    if new := [result for result in results if result.is_new]:
        _track(config, new, report["seconds"])
    return report


def _track(config: Config, results: Sequence[Extracted], seconds: float) -> None:
    """Record what was made in MLflow; features that are complete do not depend on it."""
    from dclip.store.shards import FAILURES
    from pipeline.records.tracking import Tracker

    try:
        tracker = Tracker(config)
    except StageError as error:
        log.warning("extract: features are complete, but not recorded in MLflow: %s", error)
        return
    for plan, manifest, *_ in results:
        tags = {"dclip.stage": "extract", "dclip.compute": ", ".join(manifest.compute)}
        name = f"extract {plan.name}"
        with tracker.run(name, key=plan.fingerprint, tags=tags, seconds=seconds) as run:
            run.params(
                {
                    "dataset": config.dataset,
                    "split": plan.listing.split,
                    "backbone": manifest.spec["backbone_name"],
                    "resolution": plan.space["resolution"],
                    "kind": manifest.kind,
                    "view": plan.view,
                    "storage": plan.storage,
                    "shard_size": plan.shard_size,
                    "features": plan.fingerprint[:12],
                }
            )
            total = manifest.seconds.get("total", 0.0)
            run.metrics(
                {
                    "images": manifest.num_images,
                    "unreadable": len(manifest.failures),
                    "bytes": sum(entry.bytes for entry in manifest.shards),
                    "images_per_worker_second": manifest.num_images / total if total else 0.0,
                    **{f"seconds/{name}": spent for name, spent in manifest.seconds.items()},
                }
            )
            run.text((plan.folder / FAILURES).read_text(encoding="utf-8"), FAILURES)


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plans = all_plans(config)
    backbone = describe_backbone(config)
    each = backbone.embed_dim * 2 if config.extract.storage == "float16" else backbone.embed_dim + 2
    per_image = backbone.locations * each
    lines = [
        f"backbone {backbone.name} at {backbone.resolution} px: {backbone.locations} x "
        f"{backbone.embed_dim} {config.extract.storage}, {per_image} bytes an image"
    ]
    images_left = 0
    known: list[Sidecar] = []
    for plan in plans:
        there = finished(plan)
        known += [sidecar for sidecar in there if sidecar is not None]
        to_make = _to_make(config, there)
        left = sum(len(plan.rows(number)) for number in to_make)
        images_left += left
        if left:
            require_images(plan.listing, plan.num_images)
        if not plan.view:
            notes = [*plan.notes, *filter(None, [_absent(config, plan)])]
            lines += [f"{plan.name}: {note}" for note in notes]
        lines.append(
            f"{plan.name}: {counted(plan.num_images, 'image')} in "
            f"{counted(plan.num_shards, 'shard')}, about "
            f"{plan.num_images * per_image / 1e6:.0f} MB; shards: "
            f"{len(there) - len(to_make)} done, {len(to_make)} to do "
            f"({counted(left, 'image')}), to {plan.folder}"
        )
    if config.extract.mode == "overwrite":
        lines.append("--mode overwrite: all of these shards are deleted and made anew")
    if config.extract.repair:
        lines.append("--repair: shards that --verify finds damaged are made again as well")
    if images_left:
        lines.append(_estimate(config, plans[0], known, images_left))
    return "\n".join(lines)


def _estimate(
    config: Config, plan: FeaturePlan, known: "Sequence[Sidecar]", images_left: int
) -> str:
    """Expected time, by the speed of finished shards or of a few images encoded now."""
    from pipeline.cluster.device import choose_device

    if os.environ.get("RAY_ADDRESS"):
        workers = config.extract.workers or 1
        per = "a worker" if config.extract.workers is None else counted(workers, "worker")
    else:
        device, _ = choose_device(config.device)
        workers = config.extract.workers or (1 if device == "cuda" else os.cpu_count() or 1)
        per = counted(workers, "worker")
    spent = sum(sidecar.seconds.get("total", 0.0) for sidecar in known)
    count = sum(sidecar.count for sidecar in known)
    source = "the shards that are done"
    if not count or not spent:
        spent, count, source = *_time_sample(config, plan), f"{_SAMPLE} images encoded now"
    seconds = images_left * spent / count / workers
    return (
        f"estimated time: {_duration(seconds)} by {per}, start-up aside (from {source}: "
        f"{count / spent:.3g} images/s a worker)"
    )


def _time_sample(config: Config, plan: FeaturePlan) -> tuple[float, int]:
    """Seconds that one worker takes for the first images of a plan, once warm, and their number."""
    import torch

    from pipeline.cluster.device import choose_device

    device, _ = choose_device(config.device)
    extractor = _open_extractor(config, device, batch_size=_SAMPLE)
    rows = range(min(_SAMPLE, plan.num_images))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        list(extractor.encode(plan.listing, rows))
        started = time.perf_counter()
        list(extractor.encode(plan.listing, rows))
        return time.perf_counter() - started, len(rows)
    finally:
        torch.set_num_threads(threads)
        extractor.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
