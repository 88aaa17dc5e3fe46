"""What extraction does once there is work: workers, text features, the manifest, the record."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from dclip.provenance import git_commit
from dclip.store import shards
from dclip.store.finishing import Identity, finish, write_failures
from dclip.store.verified import Verified
from dclip.words import counted
from pipeline.cluster import session as cluster
from pipeline.cluster.pool import Pool
from pipeline.features.copies import verified_folder
from pipeline.features.opened import open_backbone
from pipeline.features.plan import (
    FeaturePlan,
    finished,
    remove_shards,
    require_writable,
    root_of_images,
)
from pipeline.features.reuse import Made, Source, Task, sources_of
from pipeline.records.tracking import Tracker
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress
from pipeline.work.shard_maker import ShardMaker

log = logging.getLogger(__name__)

_ABANDONED_SECONDS = 3600
_ALL_UNREADABLE = 256  # images, after which a run that could read none of them ends


def make_shards(
    config: Config,
    plans: Sequence[FeaturePlan],
    tasks: Sequence[Task],
    sources: Mapping[int, Mapping[str, Source]],
) -> dict[Task, Made]:
    """Make shards on a pool of actors, results in any order."""
    changing = [plans[position] for position in sorted({task.plan for task in tasks})]
    for plan in changing:
        require_writable(plan.folder)
    images = sum(len(plans[task.plan].rows(task.number)) for task in tasks)
    with cluster.ray_session(config), progress("extract", images, "images") as bar:
        placement = cluster.place_workers(config, config.extract.workers)
        for plan in changing:
            # the manifest speaks of shards that are about to change
            remove_shards(
                plan, range(plan.num_shards) if config.extract.mode == "overwrite" else ()
            )
        log.info(
            "extract: %s to make by %s on %s (%s)",
            counted(len(tasks), "shard"),
            counted(min(placement.count(), len(tasks)), "worker"),
            placement.device,
            placement.why,
        )
        threads = config.extract.threads or placement.cpus  # beside those of the network
        actor = ray.remote(max_concurrency=3, **placement.options)(ShardMaker)
        shared = [ray.put(plan) for plan in plans]

        def submit(worker: Any, task: Task) -> Any:
            found = sources_of(plans[task.plan], task.number, sources.get(task.plan, {}))
            return worker.make.remote(shared[task.plan], task.number, found)

        pool: Pool[Task] = Pool(
            lambda: actor.remote(config, placement.device, threads), submit, placement.count
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


def publish(config: Config, plan: FeaturePlan, written: Mapping[int, Made]) -> shards.Manifest:
    """Write text features, the samples table, the failures, and last the manifest.

    Args:
        config: The settings.
        plan: All of whose shards are finished.
        written: What was just written, by number of the shard: nobody has to read that again.
    """
    there = finished(plan)
    if None in there:
        raise StageError(
            f"shard {there.index(None)} of {plan.folder} was made but is not to be seen; if the "
            "folder is on a network file system that caches, run the same command again"
        )
    sidecars = [sidecar for sidecar in there if sidecar is not None]
    failures = [failure for sidecar in sidecars for failure in sidecar.failures]
    listed = write_failures(plan.folder, failures)
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
    identity = Identity(
        plan.space,
        plan.source,
        plan.feature_space,
        plan.formerly,
        plan.fingerprint,
        plan.view,
        plan.storage,
    )
    manifest = finish(
        plan.folder,
        sidecars,
        backbone,
        identity,
        dataset=config.dataset,
        root=root_of_images(config),
        split=plan.listing.split,
        class_names=plan.listing.class_names,
        images=plan.images,
        notes=plan.notes,
        commit=git_commit(),
    )
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


def record(
    config: Config, results: Sequence[tuple[FeaturePlan, shards.Manifest]], seconds: float
) -> None:
    """Record what was made in MLflow; features that are complete do not depend on it."""
    try:
        tracker = Tracker(config)
    except StageError as error:
        log.warning("extract: features are complete, but not recorded in MLflow: %s", error)
        return
    for plan, manifest in results:
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
            run.text((plan.folder / shards.FAILURES).read_text(encoding="utf-8"), shards.FAILURES)
