"""Images to feature shards: what the frozen backbone sees, computed once.

Ray actors load the backbone once each and make one deterministic shard per task; inside each,
threads decode ahead of the network and shards are written as features come. A shard appears under
its final name only when it is whole; the manifest comes last. Starting again finishes what is
missing and leaves alone what is there.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dclip.store.shards import Manifest, Sidecar
from dclip.words import counted
from pipeline.features.backbone import describe_backbone
from pipeline.features.plan import (
    FeaturePlan,
    complete_manifest,
    finished,
    plan_features,
    root_of_images,
)
from pipeline.features.preflight import absent_note, one_text_note, require_images
from pipeline.features.reuse import Source, Task, earlier, take_over_all
from pipeline.features.splits import open_labelled
from pipeline.features.verify import verify
from pipeline.settings.config import Config
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import StageError, UsageError

log = logging.getLogger(__name__)


class Extracted(NamedTuple):
    """What became of one plan."""

    plan: FeaturePlan
    manifest: Manifest
    made: int
    is_new: bool


class _Found(NamedTuple):
    """What stands of some plans, and what is to be made of them.

    Attributes:
        manifests: Of each plan; None where it is not complete.
        tasks: Shards to make.
        sources: Finished shards that hold images of a plan, by its position and by their keys.
    """

    manifests: list[Manifest | None]
    tasks: list[Task]
    sources: dict[int, Mapping[str, Source]]


def extract(config: Config, plans: Sequence[FeaturePlan]) -> list[Extracted]:
    """Make what is missing of some plans.

    Raises:
        StageError: Too many images could not be read, or a worker failed.
    """
    found = _look(config, plans)
    made = Counter(task.plan for task in found.tasks)
    results = {
        position: Extracted(plan, manifest, 0, is_new=False)
        for position, (plan, manifest) in enumerate(zip(plans, found.manifests, strict=True))
        if manifest is not None and not made[position]
    }
    for plan, *_ in results.values():
        log.info("extract: nothing to do, %s is complete", plan.folder)
    if len(results) == len(plans):
        return list(results.values())
    left, written = found.tasks, {}
    if left:
        _tell(config, plans)
        written = take_over_all(plans, left, found.sources)
        left = [task for task in left if task not in written]
    for plan in {task.plan: plans[task.plan] for task in left}.values():
        require_images(plan.listing, plan.num_images)

    from pipeline.work import extraction

    if left:
        written |= extraction.make_shards(config, plans, left, found.sources)
    for position, plan in enumerate(plans):
        if position not in results:
            ours = {task.number: one for task, one in written.items() if task.plan == position}
            manifest = extraction.publish(config, plan, ours)
            results[position] = Extracted(plan, manifest, made[position], is_new=True)
    return [results[position] for position in range(len(plans))]


def _look(config: Config, plans: Sequence[FeaturePlan]) -> _Found:
    """Find out what is missing of some plans, and which finished shards may serve."""
    found = _Found([], [], {})
    for position, plan in enumerate(plans):
        if plan.num_images == 0:
            raise StageError(f"split {plan.listing.split!r} of {config.dataset} holds no images")
        anew = config.extract.mode == "overwrite"
        manifest = None if anew else complete_manifest(plan)
        found.manifests.append(manifest)
        if manifest is not None:
            _check_origin(config, manifest, plan)
            _check_precision(config, manifest.compute, plan)
        if manifest is not None and not config.extract.retry_failed:
            continue
        there: list[Sidecar | None] = [None] * plan.num_shards if anew else finished(plan)
        _check_precision(config, {one.compute for one in there if one is not None}, plan)
        missing = _to_make(config, there)
        ours: dict[str, Source] = {}
        if config.extract.retry_failed:
            ours = {
                key: Source(plan.folder, number, sidecar)
                for number, sidecar in enumerate(there)
                if sidecar is not None and sidecar.failures
                for key in sidecar.keys
            }
        if missing and not anew:
            ours = {**earlier(config, plan), **ours}
        found.sources[position] = ours
        found.tasks.extend(Task(position, number, plan.name) for number in missing)
    return found


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


def _to_make(config: Config, there: Sequence[Sidecar | None]) -> list[int]:
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


def _check_origin(config: Config, manifest: Manifest, plan: FeaturePlan) -> None:
    """Say so if features that stand are of images in another place."""
    ours, theirs = (config.dataset, root_of_images(config)), (manifest.dataset, manifest.root)
    if ours != theirs and manifest.root is not None:  # None: of an earlier version
        log.warning(
            "extract: %s was made from the images of %s in %s, not of %s in %s; if they differ, "
            "use another --features folder, or --mode overwrite",
            plan.folder, theirs[0], theirs[1] or "-", ours[0], ours[1] or "-",
        )  # fmt: skip


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
        from pipeline.work.extraction import record

        record(config, [(plan, manifest) for plan, manifest, *_ in new], report["seconds"])
    return report


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
        from pipeline.work.estimate import estimate

        lines.append(estimate(config, plans[0], known, images_left))
    return "\n".join(lines)
