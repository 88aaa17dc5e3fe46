"""Methods: members of a pack against one alone, a step in parts, and two probes.

    python benchmarks/methods.py      on CPUs, without Ray: minutes

Features are those of the drawn scenes by the small CLIP that comes with the package: 16 classes,
37 locations. All works are timed in one run, turn by turn, and compared by their medians. The last
line of stdout is JSON; of each method that learns contexts:

    packed5_over_single    time of a training of five seeds together, over that of one
    epoch_seconds          time of an epoch of one
    texts_share            time of the way of all texts through the tower and back, over that of a
                           step of one

and of the probes, both fitted by themselves to the same features,

    logistic_probe/over_linear_probe    time to the optimum of logistic regression, over that of the
                                        30 passes of the max-pooled linear probe
    logistic_probe/seconds              the first of the two
    logistic_probe/gradient_norm        where it ended: the largest of all classes
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import tell
from train import ENVIRONMENT, turns

from dclip.backbones import load_backbone
from dclip.encoding import encode_batches
from dclip.fitting.batches import Batch, MemoryFeatures
from dclip.fitting.fit import fit
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.method import Task
from dclip.methods.registry import find_method
from dclip.world.dataset import open_shapes

IMAGES, EPOCHS, SEEDS = 1024, 2, 5
METHODS = ("dualcoop", "positivecoop")


def features_of_scenes() -> tuple[MemoryFeatures, Task]:
    """Features of the first scenes, and their classes, with the backbone."""
    backbone = load_backbone("tiny")
    scenes = open_shapes(None, "train", {})
    samples = [scenes.read(row) for row in range(IMAGES)]
    pixels = torch.from_numpy(np.stack([np.asarray(sample.image) for sample in samples]))
    local = torch.cat([one.local for one in encode_batches(backbone, pixels.split(64))]).half()
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples])).to(torch.int8)
    task = Task.of(backbone, [[name] for name in scenes.class_names])
    side = backbone.resolution
    return MemoryFeatures(local, labels, grid=backbone.grid(side, side)), task


def measured(name: str, features: MemoryFeatures, task: Task) -> dict[str, float]:
    """What is said of one method."""
    kind = find_method(name)
    preset = kind.Settings.presets["robust"]
    loop = Loop(**{**preset.loop, "epochs": EPOCHS})
    rows = np.arange(IMAGES)

    def pack(count: int) -> Pack:
        return Pack(kind, [kind.Settings()] * count, loop, task, seeds=range(count))

    def training(count: int) -> Callable[[], object]:
        return lambda: fit(pack(count), features, rows, seed=0)

    together, single = turns([training(SEEDS), training(1)], repeats=5)
    alone = pack(1)
    some = rows[: loop.batch_size]
    batch = Batch(features.local(some).float(), features.labels[some], known=some.size * 16)

    def step() -> None:
        losses = alone.losses(batch)
        alone.optimizer.zero_grad()
        losses[:, 0].sum().backward()
        alone.optimizer.step()

    method = alone.method()
    learned = method.requires_grad_()

    def texts() -> None:
        learned.rows().sum().backward()  # type: ignore[operator]

    whole, through = turns([step, texts], repeats=31)
    return {
        "packed5_over_single": round(together / single, 2),
        "epoch_seconds": round(single / EPOCHS, 2),
        "texts_share": round(through / whole, 2),
    }


def probes(features: MemoryFeatures, task: Task) -> dict[str, float]:
    """What is said of logistic regression."""
    said: dict[str, float] = {}

    def fitted(name: str) -> dict[str, float]:
        kind = find_method(name)
        return kind(kind.Settings(), task).fit(features, np.arange(IMAGES), seed=0)

    def logistic() -> None:
        said.update(fitted("logistic_probe"))

    to_optimum, pooled = turns([logistic, lambda: fitted("linear_probe")], repeats=7)
    return {
        "over_linear_probe": float(f"{to_optimum / pooled:.2g}"),
        "seconds": float(f"{to_optimum:.2g}"),
        "gradient_norm": float(f"{said['gradient_norm']:.2g}"),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    features, task = features_of_scenes()
    result: dict[str, Any] = {}
    for name in METHODS:
        result |= {f"{name}/{key}": value for key, value in measured(name, features, task).items()}
        print(result, flush=True)
    result |= {f"logistic_probe/{key}": v for key, v in probes(features, task).items()}
    tell("methods-cpu", result, save=arguments.save)


if __name__ == "__main__":
    main()
