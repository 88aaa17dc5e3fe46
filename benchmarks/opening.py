"""Opening features: labels, offsets and keys of COCO-14's size, against a plain Python loop.

    python benchmarks/opening.py              82,081 images, 80 classes
    python benchmarks/opening.py --save       keep the result in benchmarks/results

The features are made up: a manifest and a samples table as the project writes them, and shards that
have their sizes but no content, as no byte of them is read. Both sides open the same folder: they
read the manifest, look at the size of every shard, hash the small files, and read the table. The
loop then goes over images one by one, as commit 5596dfb did. They take turns, so that a busy
machine slows both; the ratio is that of the medians.
The last line of stdout is JSON.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import tell

from dclip.store import shards
from dclip.store.reader import FeatureReader
from dclip.store.shards import FAILURES, FORMAT, SAMPLES, TEXT, Manifest, Sidecar

IMAGES, CLASSES, A_SHARD = 82_081, 80, 256
POSITIVES = 2.9  # an image, as in COCO-14
A_MEMBER = 202_752  # bytes an image: 197 x 512 float16, with its tar headers


def sidecar(number: int, images: int, random: np.random.Generator) -> Sidecar:
    """What a shard says of its images, some of whose labels are unknown."""
    rows = range(A_SHARD * number, A_SHARD * number + images)
    counts = np.maximum(random.poisson(POSITIVES, images), 1)
    marked = [random.permutation(CLASSES)[: count + 1].tolist() for count in counts]
    return Sidecar(
        format=FORMAT,
        fingerprint="f" * 64,
        count=images,
        bytes=A_MEMBER * images,
        sha256="0" * 64,
        keys=[f"COCO_train2014_{7 * row:012d}" for row in rows],
        indices=list(rows),
        labels=[sorted(one[1:]) for one in marked],
        unknown=[one[:1] if row % 50 == 0 else [] for row, one in zip(rows, marked, strict=True)],
        local_offsets=[A_MEMBER * place + 512 for place in range(images)],
        scale_offsets=[],
        global_offsets=[A_MEMBER * place + 200_000 for place in range(images)],
        failures=[],
        compute="cpu float32",
        seconds={},
    )


def write_folder(folder: Path, images: int) -> None:
    """Features without content: the manifest, the table, and shards that are holes."""
    random = np.random.default_rng(0)
    numbers = range(-(-images // A_SHARD))
    sidecars = [sidecar(n, min(A_SHARD, images - A_SHARD * n), random) for n in numbers]
    for number, one in enumerate(sidecars):
        with (folder / shards.shard_name(number)).open("wb") as file:
            os.truncate(file.fileno(), one.bytes)
    shards.write_samples(folder / SAMPLES, sidecars)
    (folder / TEXT).write_bytes(bytes(4 * 3 * CLASSES * 512))
    (folder / FAILURES).write_bytes(b"")
    manifest = Manifest(
        format=FORMAT,
        fingerprint="f" * 64,
        feature_space="e" * 64,
        dataset="made up",
        split="train",
        class_names=[f"class {number}" for number in range(CLASSES)],
        num_images=images,
        kind="value",
        view=0,
        storage="float16",
        locations=197,
        dim=512,
        grid=(14, 14),
        include_global_token=True,
        spec={"backbone_name": "made up"},
        compute=["cpu float32"],
        seconds={},
        shards=[
            shards.ShardEntry(
                name=shards.shard_name(number), count=one.count, bytes=one.bytes, sha256=one.sha256
            )
            for number, one in enumerate(sidecars)
        ],
        failures=[],
        files={name: shards.file_digest(folder / name) for name in (TEXT, SAMPLES, FAILURES)},
        commit=None,
    )
    shards.write_text(folder / shards.MANIFEST, manifest.model_dump_json())


def by_loop(folder: Path) -> tuple[list[str], np.ndarray, torch.Tensor]:
    """Keys, places and labels, image by image."""
    manifest = shards.read_manifest(folder)
    sizes: dict[str, int | None] = {entry.name: entry.bytes for entry in manifest.shards}
    for name, size in {**sizes, **dict.fromkeys(manifest.files)}.items():
        assert not shards.file_problem(folder / name, size, manifest.files.get(name))
    table = pq.ParquetFile(folder / SAMPLES).read()
    keys = table["key"].to_pylist()
    columns = ("index", "shard", "local_offset", "global_offset")
    places = np.stack([np.array(table[column].to_pylist(), np.int64) for column in columns])
    labels = torch.zeros(len(keys), len(manifest.class_names), dtype=torch.int8)
    classes = range(len(manifest.class_names))
    for value, column in ((1, "labels"), (-1, "unknown")):
        for row, marked in enumerate(table[column].to_pylist()):
            assert all(one in classes for one in marked), keys[row]
            labels[row, marked] = value
    return keys, places, labels


def seconds_of(function: Callable[[], Any]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Time both, turn by turn, and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results")
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, args.images)
        reader = FeatureReader(folder, verify=False)  # both sides warm
        keys, places, labels = by_loop(folder)
        assert reader.keys == keys
        assert torch.equal(reader.labels, labels)
        assert np.array_equal(reader.indices, places[0])
        ways: dict[str, Callable[[], Any]] = {
            "loop": lambda: by_loop(folder),
            "reader": lambda: FeatureReader(folder, verify=False),
            "reader_with_keys": lambda: FeatureReader(folder, verify=False).keys,
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, function in ways.items():
                took[way].append(seconds_of(function))
    seconds = {way: round(statistics.median(times), 4) for way, times in took.items()}
    for way, spent in seconds.items():
        print(f"{way}: {spent:.3f} s, {spent / seconds['loop']:.3f} of the loop")
    result = {
        "images": args.images,
        "classes": CLASSES,
        "rounds": args.rounds,
        "seconds": seconds,
        "share_of_loop": {way: round(s / seconds["loop"], 4) for way, s in seconds.items()},
    }
    tell("opening-cpu", result, save=args.save)


if __name__ == "__main__":
    main()
