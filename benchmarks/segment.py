"""Segmentation against the bare forward: images a second, and the memory of many classes.

    python benchmarks/segment.py              RN50 and ViT-B/32 at 448 px, random weights
    python benchmarks/segment.py --device cuda
    python benchmarks/segment.py --save       keep the result in benchmarks/results

Both sides have the same tensors in memory, batch size, threads and precision. The bare loop is the
frozen forward alone; segmentation is forward, projectors, scores of 21 classes, maps at the size of
a photograph (500 x 375), and the confusion matrix. They take turns, so that a busy machine slows
both; the ratio is that of the medians.
The last line of stdout is JSON.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import tell

from dclip.backbones import Backbone, load_backbone
from dclip.data.pixels import normalise
from dclip.data.windows import View, Window
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task, initial
from dclip.methods.settings import DCLIPSettings
from dclip.metrics import confusion_matrix
from dclip.segmentation import Rule, System, label_map, segment_images

CLASSES, SIZE = 21, (375, 500)
MANY, LARGE = 171, (1024, 2048)


def views(backbone: Backbone, batch: int) -> list[View]:
    """Images in memory, already resized."""
    side = backbone.resolution
    random = np.random.default_rng(0)
    return [
        View(
            random.integers(0, 256, (1, side, side, 3), np.uint8),
            (Window(0, 0, *SIZE),),
            SIZE,
            SIZE,
        )
        for _ in range(batch)
    ]


def rates(name: str, device: str, batch: int, rounds: int) -> dict[str, Any]:
    """Images a second of the bare forward and of segmentation, turn by turn."""
    backbone = load_backbone(name, pretrained="random", device=device)
    precision: Literal["float32", "float16"] = "float16" if device == "cuda" else "float32"
    pairs = torch.randn(2 * CLASSES, backbone.embed_dim)
    task = Task.of_features([str(number) for number in range(CLASSES)], pairs)
    method = initial(DCLIPMethod, DCLIPSettings(), task, seed=0).eval().on(device)
    systems = {"dclip": System("value", method.task.texts, method)}
    images = views(backbone, batch)
    pixels = torch.from_numpy(np.concatenate([view.pixels for view in images])).to(device)
    targets = torch.randint(0, CLASSES, (batch, *SIZE), device=device)

    def bare() -> None:
        with torch.no_grad(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
            backbone.encode_images(normalise(pixels, backbone.mean, backbone.std))

    def segment() -> None:
        counts = torch.zeros(CLASSES, CLASSES, dtype=torch.long, device=device)
        maps = segment_images(
            backbone, images, systems, Rule(), batch_size=batch, precision=precision, device=device
        )
        for found, target in zip(maps, targets, strict=True):
            counts += confusion_matrix(found["dclip"], target, num_classes=CLASSES)
        assert int(counts.sum()) == batch * SIZE[0] * SIZE[1]

    seconds: dict[str, list[float]] = {"bare": [], "segment": []}
    for turn in range(rounds + 1):
        for what, work in (("bare", bare), ("segment", segment)):
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                seconds[what].append(time.perf_counter() - started)
    median = {what: statistics.median(spent) for what, spent in seconds.items()}
    return {
        "backbone": name, "resolution": backbone.resolution, "batch": batch, "device": device,
        "precision": precision, "threads": torch.get_num_threads(), "rounds": rounds,
        "bare": round(batch / median["bare"], 3), "segment": round(batch / median["segment"], 3),
        "ratio": round(median["bare"] / median["segment"], 3),
    }  # fmt: skip


def draw_many() -> None:
    """Label map of many classes at a large size; prints MiB of memory it added at its peak."""
    scores = torch.rand(1, MANY, 14, 14)
    warm = (64, 64)
    label_map(scores, [Window(0, 0, *warm)], warm, warm, background=0.5)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, at what is in use
    before = peak_mib()
    label_map(scores, [Window(0, 0, *LARGE)], LARGE, LARGE, background=0.5)
    print(peak_mib() - before)


def peak_mib() -> float:
    """Largest resident memory of this process so far, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--batch", type=int, help="images a batch; left out: 8, on a GPU 64")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    parser.add_argument("--draw-many", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw_many:
        draw_many()
        return
    batch = arguments.batch or (8 if arguments.device == "cpu" else 64)
    rows = []
    for name in ("RN50", "ViT-B-32"):
        rows.append(rates(name, arguments.device, batch, arguments.rounds))
        print(rows[-1], flush=True)
    command = [sys.executable, __file__, "--draw-many"]
    added = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    whole = 4 * MANY * LARGE[0] * LARGE[1] / 2**20
    result = {
        "segment_over_bare": min(row["ratio"] for row in rows),
        "rows": rows,
        "peak_mib_171_classes_2048x1024": round(added),
        "all_scores_at_once_mib": round(whole),
    }
    tell(f"segment-{arguments.device}", result, save=arguments.save)


if __name__ == "__main__":
    main()
