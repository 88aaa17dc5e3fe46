"""How long a step of the methods on pixels takes, in each precision, and in how much memory.

    python benchmarks/online.py --backbone ViT-B-16 --resolution 224 --images 32

Random weights and random pixels: what is computed does not depend on them. Three steps warm up. One
batch is trained on, so that first and last loss show that half precision trains as float32 does.

`--save` keeps the result under benchmarks/results.
"""

import argparse
import time
from typing import Any

import common
import torch

from dclip.backbones import load_backbone
from dclip.fitting.batches import Batch
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.method import Task
from dclip.methods.registry import find_method

METHODS = ("maple", "dapt", "smartclip")
PRECISIONS = ("none", "bfloat16", "float16")
CLASSES = ("dog", "cat", "red disc", "sea", "tree", "car", "house", "chair")
WARM_UP = 3


def batch_of(images: int, side: int, *, captions: bool) -> Batch:
    """Random images, one class each."""
    labels = torch.eye(len(CLASSES), dtype=torch.long)[torch.arange(images) % len(CLASSES)]
    texts = [(f"a {CLASSES[n % len(CLASSES)]}. it has number {n}.",) for n in range(images)]
    return Batch(
        torch.empty(images, 0, 0),
        labels,
        known=labels.numel(),
        total=images,
        pixels=torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8),
        captions=texts if captions else None,
    )


def measured(name: str, mixed: str, asked: argparse.Namespace, device: str) -> dict[str, Any]:
    """Steps of one method in one precision."""
    backbone = load_backbone(
        asked.backbone, pretrained="random", resolution=asked.resolution, device=device
    )
    kind = find_method(name)
    preset = kind.Settings.preset_values(kind.Settings.usual_preset())
    loop = Loop.model_validate({**preset.loop, "mixed_precision": mixed})
    own = kind.Settings.model_validate(preset.own)
    task = Task.of(backbone, [[called] for called in CLASSES])
    pack = Pack(kind, [own], loop, task, seeds=[0], device=device)
    torch.manual_seed(0)
    fed = "captions" in own.training_feeds()
    batch = batch_of(asked.images, asked.resolution, captions=fed).to(device)
    pack.set_step_lr(loop.lr, loop.lr)
    on_cuda = device == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    losses, started = [], 0.0
    for step in range(WARM_UP + asked.steps):
        if step == WARM_UP:
            if on_cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
        pack.optimizer.zero_grad()
        value = pack.losses(batch, seed=step)
        pack.backward(value)
        pack.take_step()
        losses.append(value.detach()[0, 0])
    if on_cuda:
        torch.cuda.synchronize()
    each = (time.perf_counter() - started) / asked.steps
    return {
        "method": name,
        "mixed_precision": mixed,
        "milliseconds": round(1000 * each, 2),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if on_cuda else None,
        "first_loss": round(float(losses[0]), 4),
        "last_loss": round(float(losses[-1]), 4),
    }


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="ViT-B-16")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--images", type=int, default=32, help="in a batch")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--save", action="store_true", help="keep it under benchmarks/results")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name in METHODS:
        for mixed in PRECISIONS:
            rows.append(measured(name, mixed, asked, device))
            print(rows[-1], flush=True)
    about = {key: getattr(asked, key) for key in ("backbone", "resolution", "images", "steps")}
    common.tell(f"online-{device}", {**about, "rows": rows}, save=asked.save)


if __name__ == "__main__":
    main()
