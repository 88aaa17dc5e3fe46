"""What DCLIP makes of few images, beside what frozen CLIP says of them untrained.

    python benchmarks/few_images.py                       the data set shapes and the tiny CLIP
    python benchmarks/few_images.py --features FILE.npz   features of one's own

Images are drawn from the training rows, five draws of each number, and trained on with a preset's
own settings. What is scored are the test rows, and the training rows that were not drawn: settings
that were chosen in sight of the former were not chosen in sight of the latter. Before the first
step and after the last; mAP in percent. FILE.npz is as in benchmarks/untrained.py.

`--save` keeps the result under benchmarks/results. docs/results.md reads it.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from untrained import Data, features_of, shapes

from dclip import MemoryFeatures, Recipe, Training, fit, predict
from dclip.logits import zero_shot_scores
from dclip.metrics import mean_average_precision
from dclip.provenance import git_commit


def zero_shot(data: Data, rows: np.ndarray) -> float:
    """How frozen CLIP ranks: mAP of the mean token's cosine with each class's prompt, frozen."""
    positives = data.pairs[len(data.names) :]
    scores = zero_shot_scores(data.local[rows, 0].float(), positives)
    return 100 * mean_average_precision(scores, data.labels[rows])


def trained(data: Data, preset: str, images: int, seed: int) -> dict[str, float]:
    """One draw of images and one training on them."""
    rows = np.sort(np.random.default_rng(seed).permutation(data.train)[:images])
    left_out = np.setdiff1d(data.train, rows)[:1000]
    features = MemoryFeatures(data.local, data.labels, grid=data.grid)
    training = Training([Recipe(preset=preset)], data.pairs, seeds=[seed])
    scored = {"test": data.test, **({"rest": left_out} if len(left_out) else {})}

    def told(when: str) -> dict[str, float]:
        model = training.model()
        return {
            f"{name}_{when}": 100
            * mean_average_precision(predict(model, features, own, data.pairs), data.labels[own])
            for name, own in scored.items()
        }

    before = told("start")
    started = time.perf_counter()
    fit(training, features, rows, seed=seed)
    seconds = time.perf_counter() - started
    frozen = {f"{name}_zero_shot": zero_shot(data, own) for name, own in scored.items()}
    cosine = training.watch()[0]["inter_class_cosine"]
    return {**frozen, **before, **told("end"), "cosine": cosine, "seconds": seconds}


def main() -> None:
    """Draw, train and score as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, help="features in a file; left out: shapes")
    parser.add_argument("--images", default="20,50,100,141", help="numbers, with commas between")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--preset", default="anchored")
    parser.add_argument("--save", action="store_true", help="keep it under benchmarks/results")
    asked = parser.parse_args()
    data = features_of(asked.features) if asked.features else shapes(None)
    rows: list[dict[str, Any]] = []
    for images in map(int, asked.images.split(",")):
        runs = [trained(data, asked.preset, images, seed) for seed in range(asked.seeds)]
        row: dict[str, Any] = {"images": images}
        for name in runs[0]:
            values = [run[name] for run in runs]
            row[name] = round(statistics.fmean(values), 2)
            if name.endswith("_end"):
                start = [run[name.replace("_end", "_start")] for run in runs]
                frozen = [run[name.replace("_end", "_zero_shot")] for run in runs]
                row |= {
                    f"{name}_std": round(statistics.stdev(values), 2) if len(runs) > 1 else None,
                    f"{name}_min": round(min(values), 2),
                    f"{name}_least_gain_on_zero_shot": round(
                        min(np.subtract(values, frozen).tolist()), 2
                    ),
                    f"{name}_least_gain_on_start": round(
                        min(np.subtract(values, start).tolist()), 2
                    ),
                }
        rows.append(row)
        print(row, flush=True)
    source = asked.features.stem if asked.features else "shapes"
    result = {"preset": asked.preset, "source": source, "commit": git_commit(), "rows": rows}
    common.tell(f"few-{source}", result, save=asked.save)


if __name__ == "__main__":
    main()
