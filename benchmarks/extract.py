"""Extraction against its limit, the bare forward pass of the same frozen network.

    python benchmarks/extract.py                 on CPUs, with Ray: tiny and RN50, minutes
    python benchmarks/extract.py --only ViT-B-16-SigLIP   one of them alone
    python benchmarks/extract.py --device cuda   on one GPU, without Ray: RN101 and ViT-B/16

The bare loop encodes tensors that are in memory, with the same batch size, threads, precision and
number of processes. It is timed before and after the pipeline, in the same run; the ratio is to
their mean. Rates of the pipeline are steady ones: while all workers are busy. With the tiny CLIP
each ratio is the median of three. `pipeline_over_bare` is one worker against one loop, so that
decoding has a core where there are two; `pipeline_over_bare_all_cores` has a worker, and a loop,
on every core. `over_tower` is the ratio to the tower's own forward pass, as open_clip has it, which
makes no local features.
The last line of stdout is JSON.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import tell
from PIL import Image

from dclip.backbones import load_backbone
from dclip.data.folder import read_folder
from dclip.data.listing import ImageListing
from dclip.data.pixels import normalise
from dclip.precision import computing_in
from dclip.store.extraction import Extractor, Seconds
from dclip.store.shards import write_shard
from dclip.world import shapes


def write_images(folder: Path, count: int, size: tuple[int, int], distinct: int = 64) -> None:
    """JPEG files of scenes, with the grain of photographs where they are enlarged, and a table."""
    folder.mkdir(parents=True)
    lines = ["file,labels"]
    for number in range(count):
        name = f"{number:06d}.jpg"
        if number < distinct:
            drawn = Image.fromarray(shapes.scene("train", number).image)
            scene = drawn.resize(size, Image.Resampling.BICUBIC)
            deviation = 0 if size == drawn.size else 6
            grain = np.random.default_rng(number).normal(0, deviation, (size[1], size[0], 3))
            pixels = np.clip(np.asarray(scene, np.float32) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name, quality=90)
        else:
            shutil.copyfile(folder / f"{number % distinct:06d}.jpg", folder / name)
        lines.append(f"{name},thing")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def bare_rate(
    backbone: Any, device: str, precision: str, batch: int, seconds: float, *, alone: bool = False
) -> float:
    """Images a second of the frozen forward alone, on tensors that are there.

    Args:
        backbone: Of open_clip.
        device: Where it is.
        precision: In which it computes.
        batch: Images a pass.
        seconds: To measure for.
        alone: The tower as open_clip has it, without local features.
    """
    side = backbone.resolution
    extractor = Extractor(backbone, device=device, precision=precision, batch_size=batch)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)

    def step() -> None:
        with torch.inference_mode(), computing_in(extractor.precision, device):
            if alone:
                backbone.model.visual(normalise(pixels, backbone.mean, backbone.std))
            else:
                extractor._forward(pixels)

    for _ in range(3):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        count += batch
        if device == "cuda" and count % (8 * batch) == 0:
            torch.cuda.synchronize()
    if device == "cuda":
        torch.cuda.synchronize()
    extractor.close()
    return count / (time.perf_counter() - started)


# ---------------------------------------------------------------------------------------------
# CPU, with Ray
# ---------------------------------------------------------------------------------------------


def on_cpu(
    name: str,
    resolution: int | None,
    photo: tuple[int, int],
    images: int,
    shard: int,
    workers: int,
    batch: int,
) -> dict[str, Any]:
    """Pipeline and bare loop of one backbone on the CPU, as many processes for both."""
    import ray

    from pipeline.features.plan import plan_features
    from pipeline.settings.config import Config
    from pipeline.stages.extract import extract

    pretrained = None if name == "tiny" else "random"

    @ray.remote(num_cpus=1)
    class Bare:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.backbone = load_backbone(name, pretrained=pretrained, resolution=resolution)

        def rate(self, seconds: float, *, alone: bool) -> float:
            if not seconds:
                return 0.0
            return bare_rate(self.backbone, "cpu", "float32", batch, seconds, alone=alone)

    def bare_now(*, alone: bool = False) -> float:
        actors = [Bare.remote() for _ in range(workers)]  # type: ignore[attr-defined]
        # so that all run at the same time
        ray.get([actor.rate.remote(0.0, alone=alone) for actor in actors])
        found = sum(ray.get([actor.rate.remote(8.0, alone=alone) for actor in actors]))
        for actor in actors:
            ray.kill(actor)
        return float(found)

    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        write_images(photos, images, photo)
        config = Config.model_validate(
            {
                "dataset": f"folder:{photos}", "backbone": name, "pretrained": pretrained,
                "resolution": resolution, "output": Path(scratch) / "out", "device": "cpu",
                "extract": {
                    "split": "train", "workers": workers, "batch_size": batch, "shard_size": shard,
                },
            }
        )  # fmt: skip
        before, tower_before = bare_now(), bare_now(alone=True)
        plan = plan_features(config, "train")
        (done,) = extract(config, [plan])
        after, tower_after = bare_now(), bare_now(alone=True)
        tower = (tower_before + tower_after) / 2
        assert isinstance(plan.folder, Path)
        ends = sorted(path.stat().st_mtime for path in plan.folder.glob("shard-*.json"))
        span = slice(workers - 1, len(ends) - workers + 1)  # while all workers are busy
        steady = ends[span]
        rate = (len(steady) - 1) * shard / (steady[-1] - steady[0])
        size = sum(entry.bytes for entry in done.manifest.shards) / done.manifest.num_images
        return {
            "backbone": name, "resolution": plan.space["resolution"], "jpeg": photo,
            "workers": workers, "images": images,
            "bare": round((before + after) / 2, 2),
            "bare_before_after": [round(before, 2), round(after, 2)], "pipeline": round(rate, 2),
            "ratio": round(rate / ((before + after) / 2), 3),
            "tower": round(tower, 2), "over_tower": round(rate / tower, 3),
            "bytes_per_image": round(size),
            "seconds": done.manifest.seconds,
        }  # fmt: skip


def peak_memory(images: int) -> float:
    """Peak resident MiB of driver and workers of one extraction, a process tree of its own."""
    import psutil

    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "pipeline.extract", "--output", scratch, "--device", "cpu",
                "--split", "train", "--limit", str(images),
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        peaks: dict[int, float] = {}
        while process.poll() is None:
            here = psutil.Process(process.pid)
            for one in [here, *here.children(recursive=True)]:
                try:
                    if one.pid == process.pid or "ShardMaker" in "".join(one.cmdline()[:1]):
                        used = one.memory_info().rss / 2**20
                        peaks[one.pid] = max(peaks.get(one.pid, 0), used)
                except psutil.Error:
                    continue
            time.sleep(0.1)
        if process.returncode:
            raise RuntimeError(f"extraction of {images} images failed")
        return sum(peaks.values())


def cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements on the CPU."""
    from pipeline.cluster import session as cluster
    from pipeline.settings.config import Config

    workers = os.cpu_count() or 1
    rows = []
    with cluster.ray_session(Config(device="cpu")):
        # the tiny CLIP's images are as large as it takes them, RN50's are photographs
        plans = [
            ("tiny", None, (192, 192), arguments.images, 128, workers, 32),
            ("tiny", None, (192, 192), arguments.images, 128, 1, 32),
            ("RN50", 224, (500, 375), 512, 16, workers, 8),
            ("ViT-B-16-SigLIP", 224, (500, 375), 192, 16, 1, 8),
        ]
        plans = [plan for plan in plans if arguments.only in (None, plan[0])]
        for plan in plans:
            repeats = 3 if plan[0] == "tiny" else 1
            found = [on_cpu(*plan) for _ in range(repeats)]
            found.sort(key=lambda row: float(row["ratio"]))
            rows.append(found[repeats // 2] | {"ratios": [row["ratio"] for row in found]})
            print(rows[-1], flush=True)
    if arguments.only:
        return {"rows": rows}
    memory = {images: peak_memory(images) for images in (1000, 10_000)}
    print({f"peak MiB at {images} images": round(used) for images, used in memory.items()})
    tiny, one, rn50, siglip = rows
    return {
        "pipeline_over_bare": one["ratio"],
        "pipeline_over_bare_all_cores": tiny["ratio"],
        "pipeline_over_bare_rn50": rn50["ratio"],
        "pipeline_over_tower_siglip": siglip["over_tower"],
        "rss_10k_over_1k": round(memory[10_000] / memory[1000], 3),
        "peak_mib": {str(images): round(used) for images, used in memory.items()},
        "bytes_per_image": tiny["bytes_per_image"],
        "workers_2_over_1": round(tiny["pipeline"] / one["pipeline"], 3),
        "rows": rows,
    }


# ---------------------------------------------------------------------------------------------
# GPU, without Ray
# ---------------------------------------------------------------------------------------------


def on_gpu(
    name: str, listing: ImageListing, batch: int, threads: int, scratch: Path
) -> dict[str, Any]:
    """The worker's loop on one GPU: two shards at once, threads that decode."""
    backbone = load_backbone(name, pretrained="random", resolution=448, device="cuda")
    before = bare_rate(backbone, "cuda", "float16", batch, 5.0)
    extractor = Extractor(backbone, device="cuda", batch_size=batch, threads=threads)
    folder = scratch / name
    folder.mkdir()
    spent: list[Seconds] = []
    size = 4 * batch
    writing: list[float] = []
    lock = threading.Lock()

    def make(number: int) -> int:
        seconds = Seconds()
        rows = range(number * size, min((number + 1) * size, len(listing)))
        sidecar = write_shard(
            folder, number, extractor.records(listing, rows, failures=[], seconds=seconds), [],
            fingerprint="", compute=extractor.compute, seconds={},
        )  # fmt: skip
        with lock:
            spent.append(seconds)
            writing.append(sidecar.seconds["write"])
        return sidecar.bytes

    make(0)
    spent.clear()
    writing.clear()
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        written = sum(pool.map(make, range(1, -(-len(listing) // size))))
    wall = time.perf_counter() - started
    extractor.close()
    after = bare_rate(backbone, "cuda", "float16", batch, 5.0)
    count = len(listing) - size
    bare, rate = (before + after) / 2, count / wall
    busy = {
        "decode": sum(s.decode + s.read for s in spent) / threads / wall,
        "forward": count / bare / wall,
        "write": sum(writing) / 2 / wall,
    }
    return {
        "backbone": name, "batch": batch, "threads": threads, "images": count,
        "bare": round(bare, 1), "pipeline": round(rate, 1), "ratio": round(rate / bare, 3),
        "bytes_per_image": round(written / count),
        "busy": {part: round(share, 3) for part, share in busy.items()},
        "limit": max(busy, key=lambda part: busy[part]),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20),
    }  # fmt: skip


def gpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """RN101 and ViT-B/16 at 448 px from JPEG files of a photograph's size."""
    threads = os.cpu_count() or 1
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        write_images(photos, arguments.images, (640, 480), distinct=256)
        listing = read_folder(photos, "train")
        for name in ("RN101", "ViT-B-16"):
            rows.append(on_gpu(name, listing, 128, threads, Path(scratch)))
            print(rows[-1], flush=True)
    return {
        "pipeline_over_bare": min(row["ratio"] for row in rows),
        "bytes_per_image": rows[0]["bytes_per_image"],
        "rows": rows,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", help="a backbone of the CPU's: its rows alone")
    parser.add_argument("--images", type=int, default=None, help="images to extract")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    arguments = parser.parse_args()
    arguments.images = arguments.images or (4096 if arguments.device == "cpu" else 8192)
    result = cpu(arguments) if arguments.device == "cpu" else gpu(arguments)
    tell(f"extract-{arguments.device}", result, save=arguments.save)


if __name__ == "__main__":
    main()
