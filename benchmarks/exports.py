"""Exported files against eager: images a second of the same model in one process, turn by turn.

    python benchmarks/exports.py              RN50 at 224 px (random weights), and the tiny CLIP
    python benchmarks/exports.py --save       keep the result in benchmarks/results

The model is DCLIP of 80 classes. Eager is what the package does itself: `encode_images` of the
frozen CLIP (channels last, BatchNorm by itself), then the method's scores and its probabilities of
locations, which project the class texts each time. A file is what `pipeline.export` writes, read
again: ONNX by ONNX Runtime with its default optimisations, pt2 by torch. All are given the same
normalised float32 pixels in memory and give scores and maps as float32 arrays; all have the same
number of threads. The threads of ONNX Runtime may not spin, and those of torch wait passively: else
whoever waits takes the cores from whoever works. Each round all take a turn; the ratio is that of
the medians. What the arrays differ by is measured in the same run.
The last line of stdout is JSON.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read as torch is loaded

import numpy as np
import onnxruntime
import torch
from common import tell

from dclip.backbones import load_backbone
from dclip.exports import pt2_file
from dclip.exports.export import Runner, difference_from_eager, export_of, write
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task, initial
from dclip.methods.settings import DCLIPSettings

CLASSES = 80


def by_onnxruntime(path: Path, threads: int) -> Runner:
    """The file with as many threads as the others have, which sleep while they wait."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        said = session.run(["scores", "maps"], dict(inputs))
        return dict(zip(("scores", "maps"), said, strict=True))

    return run


def rates(
    name: str, pretrained: str | None, side: int, batch: int, rounds: int, folder: Path
) -> dict[str, Any]:
    """Images a second of eager and of each file, turn by turn."""
    backbone = load_backbone(name, pretrained=pretrained, resolution=side)
    pairs = torch.randn(2 * CLASSES, backbone.embed_dim)
    task = Task.of_features([str(number) for number in range(CLASSES)], pairs)
    method = initial(DCLIPMethod, DCLIPSettings(), task, seed=0).eval()
    export = export_of(backbone, method)
    files = {form: write(export, folder / f"model.{form}", form) for form in ("onnx", "pt2")}
    runners: dict[str, Runner] = {
        "eager": export.eager,
        "onnx": by_onnxruntime(files["onnx"].path, torch.get_num_threads()),
        "pt2": pt2_file.read(files["pt2"].path, export),
    }
    images = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
    seconds: dict[str, list[float]] = {form: [] for form in runners}
    for turn in range(rounds + 1):
        for form, run in runners.items():
            started = time.perf_counter()
            run({"images": images})
            if turn:  # the first one warms up
                seconds[form].append(time.perf_counter() - started)
    median = {form: statistics.median(spent) for form, spent in seconds.items()}
    return {
        "backbone": name,
        "resolution": side,
        "classes": CLASSES,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "images_per_second": {form: round(batch / each, 2) for form, each in median.items()},
        "fastest_turn": {form: round(batch / min(each), 2) for form, each in seconds.items()},
        "over_eager": {form: round(median["eager"] / median[form], 3) for form in files},
        "difference": {
            form: float(f"{difference_from_eager(export, runners[form]):.2g}") for form in files
        },
        "mib": {form: round(file.size / 2**20, 1) for form, file in files.items()},
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--batch", type=int, default=8, help="images a batch")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    arguments = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        for name, pretrained, side, batch in (
            ("RN50", "random", 224, arguments.batch),
            ("RN50", "random", 224, 1),
            ("tiny", None, 192, arguments.batch),
            ("tiny-vit", None, 192, arguments.batch),
        ):
            rows.append(rates(name, pretrained, side, batch, arguments.rounds, Path(folder)))
            print(rows[-1], flush=True)
    result = {
        "onnx_over_eager_rn50": rows[0]["over_eager"]["onnx"],
        "onnxruntime": onnxruntime.__version__,
        "rows": rows,
    }
    tell("exports-cpu", result, save=arguments.save)


if __name__ == "__main__":
    main()
