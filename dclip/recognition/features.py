"""Local features of given images, made once and kept on disk; no Ray, no settings file."""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from tqdm import tqdm

from dclip.backbones import Backbone, former_fingerprint
from dclip.data.images import ImageError
from dclip.data.listing import Listing
from dclip.fitting.drawn import with_labels
from dclip.recognition.looking import space_of
from dclip.store.extraction import Extractor, Seconds, write_encoded
from dclip.store.finishing import Identity, finish, write_failures
from dclip.store.reader import FeatureReader
from dclip.store.shards import (
    FORMAT,
    Failure,
    ImageRecord,
    ShardError,
    digest,
    read_manifest,
    read_sidecars,
)
from dclip.words import counted

log = logging.getLogger(__name__)

SHARD_SIZE = 64
"""Images that are encoded before what was made of them is on disk."""

_NO_CLASS = ("anything",)  # what kept features are labelled with: labels stay outside


class Made(NamedTuple):
    """Features of given images.

    Attributes:
        source: Of the images that could be read, with their labels.
        indices: Position of each in the listing.
        fingerprint: Of the features.
        feature_space: What gives their numbers a meaning.
        formerly: What version 0.1 had for it.
    """

    source: FeatureReader
    indices: Int64[np.ndarray, " rows"]
    fingerprint: str
    feature_space: str
    formerly: str


def cache_folder() -> Path:
    """Where features are kept if nothing else is said: ``dclip`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "dclip"


def features_of(
    listing: Listing,
    labels: Int[Tensor, "images classes"],
    backbone: Backbone,
    *,
    cache: Path,
    kind: str = "value",
    device: str = "cpu",
    batch_size: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Made:
    """Features of all images, from the cache where they are there; what is made stays there.

    Labels are no part of what is kept: after a correction nothing is encoded anew. After a stop,
    only the images of the last 64 are.

    Args:
        listing: Images.
        labels: 1, 0, or -1 for unknown.
        backbone: Frozen CLIP, on the device.
        cache: Folder that holds the features of any images.
        kind: Of local features.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        batch_size: Images a forward pass; left out: by the device.
        threads: That read and decode; left out: one a CPU.
        progress: Show a bar.

    Raises:
        ImageError: No image can be read. Of a few that cannot, a warning tells.
        ValueError: The backbone has no such kind.
    """
    space = space_of(backbone, kind)
    former = {**space, "backbone": former_fingerprint(backbone)}
    keys = [listing.key(index) for index in range(len(listing))]
    source = {"format": FORMAT, "images": digest({"keys": keys}), "shard_size": SHARD_SIZE}
    fingerprint = digest({"space": space, "source": source})
    identity = Identity(space, source, digest(space), digest(former), fingerprint)
    folder = cache / "features" / fingerprint[:24]
    if not _is_complete(folder, fingerprint):
        _make(
            listing, backbone, identity, folder,
            kind=kind, device=device, batch_size=batch_size, threads=threads, progress=progress,
        )  # fmt: skip
    else:
        log.info("features of %s stand in %s", counted(len(listing), "image"), folder)
    reader = FeatureReader(folder, records=cache / "verified")
    if failures := reader.manifest.failures:
        warnings.warn(
            f"{len(failures)} of {len(listing)} images cannot be read and are left out, such as "
            f"{failures[0].error}",
            stacklevel=3,
        )
    indices = np.asarray(reader.indices)
    found = with_labels(reader, labels[torch.from_numpy(indices)])
    assert isinstance(found, FeatureReader)
    return Made(found, indices, fingerprint, identity.feature_space, identity.formerly)


def _is_complete(folder: Path, fingerprint: str) -> bool:
    try:
        manifest = read_manifest(folder)
    except ShardError:
        return False
    sidecars = read_sidecars(folder, len(manifest.shards), fingerprint)
    return manifest.fingerprint == fingerprint and None not in sidecars


def _make(
    listing: Listing,
    backbone: Backbone,
    identity: Identity,
    folder: Path,
    *,
    kind: str,
    device: str,
    batch_size: int | None,
    threads: int | None,
    progress: bool,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-len(listing) // SHARD_SIZE)
    there = read_sidecars(folder, count, identity.fingerprint)
    extractor = Extractor(
        backbone,
        device=device,
        kind=kind,
        batch_size=batch_size,
        threads=threads or os.cpu_count() or 1,
    )
    rows = [
        range(start, min(start + SHARD_SIZE, len(listing)))
        for start in range(0, len(listing), SHARD_SIZE)
    ]
    done = sum(len(rows[n]) for n, sidecar in enumerate(there) if sidecar is not None)
    try:
        with tqdm(
            total=len(listing), initial=done, unit="image", desc="features", disable=not progress
        ) as bar:
            for number, own in enumerate(rows):
                if there[number] is not None:
                    continue
                failures: list[Failure] = []
                seconds = Seconds()
                encoded = extractor.records(listing, own, failures=failures, seconds=seconds)
                there[number] = write_encoded(
                    folder,
                    number,
                    _counted(encoded, bar),
                    failures=failures,
                    seconds=seconds,
                    fingerprint=identity.fingerprint,
                    compute=extractor.compute,
                )
                bar.update(len(failures))
    finally:
        extractor.close()
    sidecars = [sidecar for sidecar in there if sidecar is not None]
    failures = [failure for sidecar in sidecars for failure in sidecar.failures]
    if len(failures) == len(listing):
        for number in range(count):  # they may be repaired
            (folder / f"shard-{number:06d}.json").unlink(missing_ok=True)
        raise ImageError(f"none of {len(listing)} images can be read, such as {failures[0].error}")
    write_failures(folder, failures)
    finish(
        folder,
        sidecars,
        backbone,
        identity,
        dataset=str(listing.name),
        root="",
        split=str(listing.split),
        class_names=_NO_CLASS,
    )


def _counted(records: Iterable[ImageRecord], bar: Any) -> Iterator[ImageRecord]:
    """Records without labels, which stay outside, each told to a bar."""
    for record in records:
        bar.update()
        yield replace(record, labels=(), unknown=(0,))
