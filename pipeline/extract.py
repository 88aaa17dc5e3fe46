"""Images to feature shards: what the frozen backbone sees, computed once.

Ray actors load the backbone once each and make one deterministic shard per task. A shard appears
under its final name only when it is whole; the manifest comes last. Starting again finishes what is
missing and leaves alone what is there.
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import Report, main
from pipeline.config import Config
from pipeline.errors import StageError, UsageError

if TYPE_CHECKING:
    from dclip.backbones import Backbone
    from dclip.data.listing import Listing
    from pipeline.shards import Manifest, Sidecar

log = logging.getLogger(__name__)


DESCRIPTION = """\
Compute frozen local features once and keep them as WebDataset tar shards.

examples:
  python -m pipeline.extract                              the embedded dataset, nothing to download
  python -m pipeline.extract --dataset coco --root DIR --backbone RN101
  python -m pipeline.extract --split test --workers 2
A second run does nothing; a run that was stopped goes on with the next shard."""


@dataclass(frozen=True)
class FeaturePlan:
    """What the features of one split are, and where they go.

    Attributes:
        folder: Folder of the shards; its name holds the fingerprint, so that features of two
            backbones, resolutions or listings never share a folder.
        space: What gives the numbers their meaning; its hash is ``feature_space``.
        source: What is read; with ``space`` it gives ``fingerprint``.
    """

    folder: Path
    listing: "Listing"
    space: Mapping[str, Any]
    source: Mapping[str, Any]
    feature_space: str
    fingerprint: str
    num_images: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """Number of shards the images fill."""
        return -(-self.num_images // self.shard_size)

    def rows(self, shard: int) -> range:
        """Positions in the listing that belong to one shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_images))


def open_dataset(config: Config, split: str) -> "Listing":
    """Images and labels of one split.

    Raises:
        UsageError: An unknown dataset or split, or a dataset that needs ``--root``.
    """
    from pipeline.listings import options_of

    options = options_of(config.dataset, config.images, config.options)
    cache = config.output.absolute() / "listings"
    return _open_dataset(config.dataset, config.root, split, tuple(options.items()), cache)


@lru_cache(maxsize=4)
def _open_dataset(
    dataset: str,
    root: Path | None,
    split: str,
    options: tuple[tuple[str, str], ...],
    cache: Path,
) -> "Listing":
    from pipeline.listings import open_listing

    return open_listing(dataset, root, split, dict(options), cache=cache)


def open_backbone(config: Config, *, device: str = "cpu") -> "Backbone":
    """The frozen CLIP of the settings.

    Raises:
        UsageError: An unknown name, weights that cannot be had, or an unusable resolution.
    """
    return _open_backbone(
        config.backbone,
        config.pretrained,
        config.resolution,
        config.include_global_token,
        device,
    )


@lru_cache(maxsize=2)
def _open_backbone(
    name: str,
    pretrained: str | None,
    resolution: int | None,
    include_global_token: bool | None,
    device: str,
) -> "Backbone":
    from dclip.backbones import load_backbone

    try:
        return load_backbone(
            name,
            pretrained=pretrained,
            resolution=resolution,
            include_global_token=include_global_token,
            device=device,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def plan_features(config: Config, split: str) -> FeaturePlan:
    """Identity and place of the features of one split, whether they exist yet or not."""
    from dclip.prompts import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE
    from pipeline.shards import FORMAT, digest

    listing = open_dataset(config, split)
    backbone = open_backbone(config)
    num_images = min(len(listing), config.extract.limit or len(listing))
    space = {
        "backbone": backbone.fingerprint(),
        "kind": "value",
        "resolution": backbone.resolution,
        "include_global_token": backbone.include_global_token,
        "resize": "square, bilinear, antialiased",
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "dtype": "float16",
    }
    source = {
        "format": FORMAT,
        "listing": listing.identity(),
        "num_images": num_images,
        "prompts": [NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE],
        "shard_size": config.extract.shard_size,
    }
    fingerprint = digest({"space": space, "source": source})
    slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in backbone.name).strip("-").lower()
    folder = config.output / "features" / config.dataset_slug / f"{slug}-{split}-{fingerprint[:12]}"
    return FeaturePlan(
        folder=folder.absolute(),
        listing=listing,
        space=space,
        source=source,
        feature_space=digest(space),
        fingerprint=fingerprint,
        num_images=num_images,
        shard_size=config.extract.shard_size,
    )


def make_shard(
    plan: FeaturePlan, number: int, backbone: "Backbone", *, device: str, batch_size: int
) -> "Sidecar":
    """Read, encode and write the images of one shard; unreadable ones are recorded and left out."""
    import numpy as np
    import torch

    from dclip.data.images import ImageError, image_to_tensor
    from pipeline.shards import Failure, ImageRecord, write_shard

    seconds = dict.fromkeys(("read", "encode", "total"), 0.0)
    records: list[ImageRecord] = []
    failures: list[Failure] = []
    started = time.perf_counter()
    rows = plan.rows(number)
    for first in range(rows.start, rows.stop, batch_size):
        lap = time.perf_counter()
        images, labels, keys = [], [], []
        for row in range(first, min(first + batch_size, rows.stop)):
            try:
                sample = plan.listing.read(row)
            except (ImageError, OSError) as error:
                reason = " ".join(str(error).split())
                failures.append(Failure(key=plan.listing.key(row), error=reason))
                continue
            images.append(
                image_to_tensor(sample.image, backbone.resolution, backbone.mean, backbone.std)
            )
            labels.append(sample.labels)
            keys.append((plan.listing.key(row), row))
        seconds["read"] += time.perf_counter() - lap
        if not images:
            continue
        lap = time.perf_counter()
        features = backbone.encode_images(torch.stack(images).to(device))
        local = features.local.to(torch.float16).cpu().numpy()
        embedding = features.embedding.float().cpu().numpy()
        seconds["encode"] += time.perf_counter() - lap
        if not np.isfinite(local).all():
            raise StageError(
                f"the backbone gives features beyond float16 for image {keys[0][0]!r} or one of "
                "the next; check its weights"
            )
        records += [
            ImageRecord(
                key,
                row,
                tuple(np.flatnonzero(labels[i] == 1).tolist()),
                tuple(np.flatnonzero(labels[i] == -1).tolist()),
                local[i],
                embedding[i],
            )
            for i, (key, row) in enumerate(keys)
        ]
    seconds["total"] = time.perf_counter() - started
    return write_shard(
        plan.folder, number, records, failures, fingerprint=plan.fingerprint, seconds=seconds
    )


def extract(config: Config, plans: "Sequence[FeaturePlan]") -> "list[tuple[Manifest, int]]":
    """Make what is missing of some splits.

    Returns:
        For each plan its manifest, and the number of shards made now.

    Raises:
        StageError: Too many images could not be read, or a worker failed.
    """
    from pipeline.shards import read_manifest

    missing = {}
    for plan in plans:
        if plan.num_images == 0:
            raise StageError(f"split {plan.listing.split!r} of {config.dataset} holds no images")
        plan.folder.mkdir(parents=True, exist_ok=True)
        missing[plan.folder] = [n for n, done in enumerate(_finished(plan)) if done is None]
    if any(missing.values()):
        _make_shards(config, [(plan, n) for plan in plans for n in missing[plan.folder]])
    results = []
    for plan in plans:
        made = len(missing[plan.folder])
        if made == 0 and is_complete(plan):
            log.info("extract: nothing to do, %s is complete", plan.folder)
            results.append((read_manifest(plan.folder), 0))
        else:
            results.append((_publish(config, plan), made))
    return results


def is_complete(plan: FeaturePlan) -> bool:
    """Whether every shard and the manifest stand."""
    from pipeline.shards import MANIFEST

    return (plan.folder / MANIFEST).is_file() and all(_finished(plan))


def _finished(plan: FeaturePlan) -> "list[Sidecar | None]":
    from pipeline.shards import read_sidecar

    return [read_sidecar(plan.folder, n, plan.fingerprint) for n in range(plan.num_shards)]


def _make_shards(config: Config, tasks: "Sequence[tuple[FeaturePlan, int]]") -> None:
    """Make shards on a pool of actors; two in flight per actor, results in any order."""
    from pipeline import cluster
    from pipeline.progress import progress

    device, why = cluster.choose_device(config.device)
    log.info("extract: %d shards to make on %s (%s)", len(tasks), device, why)
    images = sum(len(plan.rows(number)) for plan, number in tasks)
    with cluster.ray_session(config), progress("extract", images, "images") as bar:
        import ray

        resource = "GPU" if device == "cuda" else "CPU"
        available = int(ray.cluster_resources().get(resource, 1))
        workers = min(config.extract.workers or available, len(tasks))
        options = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
        actor = ray.remote(max_restarts=-1, max_task_retries=-1, **options)(_Extractor)
        pool = [actor.remote(config, device) for _ in range(workers)]
        shared = {plan.folder: ray.put(plan) for plan, _ in tasks}
        queue = list(tasks)
        running: dict[Any, tuple[FeaturePlan, int, Any]] = {}
        failed = 0

        def give(worker: Any) -> None:
            if queue:
                plan, number = queue.pop(0)
                running[worker.make.remote(shared[plan.folder], number)] = (plan, number, worker)

        try:
            for worker in pool * 2:
                give(worker)
            while running:
                ready, _ = ray.wait(list(running), num_returns=1)
                plan, number, worker = running.pop(ready[0])
                failed += ray.get(ready[0])
                bar.advance(len(plan.rows(number)), f"{failed} unreadable" if failed else "")
                give(worker)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(cluster.cause(error)).split())
            raise StageError(f"a worker failed: {reason}; finished shards are kept") from None
        finally:
            for worker in pool:
                ray.kill(worker)


class _Extractor:
    """Actor that holds the backbone."""

    def __init__(self, config: Config, device: str) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(1)
        self.device, self.batch_size = device, config.extract.batch_size
        self.backbone = open_backbone(config, device=device)

    def make(self, plan: FeaturePlan, number: int) -> int:
        """Make one shard; number of images that could not be read."""
        sidecar = make_shard(
            plan, number, self.backbone, device=self.device, batch_size=self.batch_size
        )
        return len(sidecar.failures)


def _publish(config: Config, plan: FeaturePlan) -> "Manifest":
    """Write text features, the samples table, and last the manifest."""
    from dclip import encode_class_names, encode_prompt_pairs
    from dclip.prompts import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE
    from pipeline import shards
    from pipeline.provenance import git_commit

    sidecars = [sidecar for sidecar in _finished(plan) if sidecar is not None]
    failures = [failure for sidecar in sidecars for failure in sidecar.failures]
    good = plan.num_images - len(failures)
    if failures:
        named = "; ".join(f"{failure.key}: {failure.error}" for failure in failures[:5])
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        text = f"{len(failures)} of {plan.num_images} images left out: {named}{more}"
        log.warning("extract: %s", text)
    if len(failures) > config.extract.max_failures * plan.num_images or good == 0:
        raise StageError(
            f"{len(failures)} of {plan.num_images} images of {plan.listing.split!r} are unreadable "
            f"(first: {failures[0].key}: {failures[0].error}); --extract.max-failures allows "
            f"{config.extract.max_failures:g}; shards are kept, repair the images or raise it"
        )
    backbone = open_backbone(config)
    class_names = plan.listing.class_names
    shards.write_text_features(
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
    manifest = shards.Manifest(
        format=shards.FORMAT,
        fingerprint=plan.fingerprint,
        feature_space=plan.feature_space,
        dataset=config.dataset,
        split=plan.listing.split,
        class_names=list(class_names),
        num_images=good,
        kind="value",
        dtype="float16",
        locations=grid[0] * grid[1] + int(backbone.include_global_token),
        dim=backbone.embed_dim,
        grid=grid,
        include_global_token=backbone.include_global_token,
        spec={"backbone_name": backbone.name, **plan.space, **plan.source},
        shards=[
            shards.ShardEntry(
                name=shards.shard_name(n), count=s.count, bytes=s.bytes, sha256=s.sha256
            )
            for n, s in enumerate(sidecars)
        ],
        failures=failures,
        files={
            name: shards.file_digest(plan.folder / name) for name in (shards.TEXT, shards.SAMPLES)
        },
        commit=git_commit(),
    )
    shards.write_text(plan.folder / shards.MANIFEST, manifest.model_dump_json(indent=1))
    for abandoned in plan.folder.glob(".shard-*.tmp"):  # of workers that were killed
        abandoned.unlink(missing_ok=True)
    return manifest


def splits(config: Config) -> list[str]:
    """Splits that the settings ask for."""
    if config.extract.split is not None:
        return [config.extract.split]
    return list(dict.fromkeys([config.train_split, config.test_split]))


def run(config: Config) -> Report:
    """Make the features of all splits the settings ask for; the report names their folders."""
    started = time.perf_counter()
    plans = [plan_features(config, split) for split in splits(config)]
    report: Report = {"stage": "extract", "splits": {}}
    for plan, (manifest, made) in zip(plans, extract(config, plans), strict=True):
        report["splits"][manifest.split] = {
            "folder": str(plan.folder),
            "images": manifest.num_images,
            "unreadable": len(manifest.failures),
            "shards_made": made,
            "bytes": sum(entry.bytes for entry in manifest.shards),
            "shape": [manifest.locations, manifest.dim],
            "feature_space": manifest.feature_space,
        }
        sys.stdout.write(
            f"{manifest.split}: {manifest.num_images} images, {manifest.locations} x "
            f"{manifest.dim} {manifest.dtype}, {made} of {len(manifest.shards)} shards made now, "
            f"at {plan.folder}\n"
        )
    report["seconds"] = round(time.perf_counter() - started, 2)
    return report


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plans = [plan_features(config, split) for split in splits(config)]
    backbone = open_backbone(config)
    rows, columns = backbone.grid(backbone.resolution, backbone.resolution)
    per_image = (rows * columns + int(backbone.include_global_token)) * backbone.embed_dim * 2
    lines = [f"backbone {backbone.name} at {backbone.resolution} px, {per_image} bytes an image"]
    for plan in plans:
        done = sum(sidecar is not None for sidecar in _finished(plan))
        size = plan.num_images * per_image / 1e6
        lines.append(
            f"{plan.listing.split}: {plan.num_images} images in {plan.num_shards} shards, about "
            f"{size:.0f} MB, {done} shards done, to {plan.folder}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main("extract"))
