"""Counting the labels of a data set, and drawing them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from dclip.data.segmentation import SegmentationListing, label_names
from dclip.pictures.canvas import save
from dclip.store.paths import AnyPath
from dclip.words import counted
from pipeline.features.listings import labels_of_masks
from pipeline.features.preflight import spread
from pipeline.inspection.splits import AnyListing, default_splits, open_split
from pipeline.pictures import figures
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress

_NAMED = 5
"""How many classes are named."""


def stats(
    name: str,
    root: AnyPath | None,
    *,
    splits: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    limit: int = 1000,
    out: Path,
    cache: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Count and draw each split.

    Args:
        name: As for `pipeline.features.listings.open_listing`.
        root: Folder of it.
        splits: Which to look at; left out: those to train and report on.
        options: Settings of the data set.
        limit: Samples to look at where labels are not listed, evenly spread.
        out: Folder of the pictures; made if missing.
        cache: As for `pipeline.features.listings.open_listing`.

    Yields:
        For each split: images, images looked at, classes, and counts of labels.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split in splits or default_splits(name, root, options):
        listing = open_split(name, root, split, options or {}, cache)
        class_names, labels, unreadable = presence(listing, limit)
        if not len(labels):
            raise StageError(f"no sample of {name} {split} can be read: {unreadable}")
        positives = labels == 1
        together = positives.T.astype("int64") @ positives
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name.rpartition("/")[2]).strip("-")
        files = [out / f"{slug}-{split}-{what}.png" for what in ("classes", "cooccurrence")]
        counts = together.diagonal()
        title = f"{name.rpartition('/')[2]} {split}, {len(labels):,} of {len(listing):,} images"
        save(figures.class_histogram(counts, class_names, title), files[0])
        save(figures.cooccurrence(together, class_names, title), files[1])
        per_image = positives.sum(axis=1)
        yield {
            "dataset": name,
            "split": split,
            "images": len(listing),
            "looked_at": len(labels),
            "unreadable": unreadable,
            "classes": len(class_names),
            "labels_per_image": {
                "mean": round(float(per_image.mean()), 4),
                "min": int(per_image.min()),
                "max": int(per_image.max()),
                "none": int((per_image == 0).sum()),
            },
            "unknown": int((labels == -1).sum()),
            "images_of_class": dict(zip(class_names, counts.tolist(), strict=True)),
            "files": [str(file) for file in files],
        }


def presence(listing: AnyListing, limit: int) -> tuple[tuple[str, ...], np.ndarray, int]:
    """Class names and label vectors of a listing, and how many samples could not be read.

    Listed labels are all taken; else they are read from as many samples as ``limit`` says. Of masks
    they are those `pipeline.features.listings.open_listing` has: background is none.
    """
    listed = getattr(listing, "labels", None)
    if listed is not None:
        return listing.class_names, cast("np.ndarray", listed), 0
    rows = spread(len(listing), limit)
    if isinstance(listing, SegmentationListing):
        vectors, failures = labels_of_masks(listing, rows)
        read = np.delete(vectors, list(failures), axis=0)
        return label_names(listing.class_names), read, len(failures)
    drawn = []
    with progress("stats", len(rows), "samples") as bar:
        for row in rows:
            drawn.append(listing.read(row).labels)
            bar.advance(1)
    return listing.class_names, np.stack(drawn), 0


def shown_stats(report: Mapping[str, Any]) -> str:
    """A report of stats in words."""
    each, counts = report["labels_per_image"], report["images_of_class"]
    looked = (
        "" if report["looked_at"] == report["images"] else f" ({report['looked_at']:,} looked at)"
    )
    order = sorted(counts, key=lambda name: -counts[name])

    def named(names: Sequence[str]) -> str:
        return ", ".join(f"{name} {counts[name]:,}" for name in names)

    lines = [
        f"{report['dataset']} {report['split']}: {counted(report['images'], 'image')}{looked},"
        f" {counted(report['classes'], 'class', 'classes')}",
        f"  labels per image  mean {each['mean']:.2f}, {each['min']} to {each['max']};"
        f" {counted(each['none'], 'image')} without",
        f"  most frequent     {named(order[:_NAMED])}",
        f"  least frequent    {named(order[::-1][:_NAMED])}",
    ]
    if report["unknown"]:
        lines.append(f"  unknown labels    {report['unknown']:,}")
    if report["unreadable"]:
        lines.append(f"  unreadable        {report['unreadable']:,} samples")
    lines += [f"  wrote {file}" for file in report["files"]]
    return "\n".join(lines)
