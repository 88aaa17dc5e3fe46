"""What MFI brings on real photographs, by how alike CLIP's texts of the classes are.

    python benchmarks/disentangling.py --features FILE.npz

DCLIP's preset `robust` is trained on all training images with three weights of MFI, from both
starts: on all classes, on the part of them whose texts frozen CLIP tells apart worst, and on the
part that it tells apart best. Parts are made one class at a time, each the one that is most (least)
alike to those taken. Scored on the test rows that show one of the classes; mAP in percent, the
difference to the same without MFI over the seeds, with the 95 % interval of its mean.
FILE.npz is as in benchmarks/untrained.py.

`--save` keeps the result under benchmarks/results. docs/results.md reads it.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from untrained import Data, features_of

from dclip import MemoryFeatures, Recipe, Training, fit, predict
from dclip.metrics import cosine_matrix, mean_average_precision, paired_interval
from dclip.provenance import git_commit

WEIGHTS = (0.0, 0.1, 1.0)
STARTS = ("aligned", "random")


def part(data: Data, count: int, *, alike: bool) -> list[int]:
    """Classes whose texts are most, or least, alike, ascending; each is in a training image."""
    cosines = cosine_matrix(data.pairs[len(data.names) :]).numpy()
    shown = np.flatnonzero((data.labels[data.train] == 1).any(0).numpy())
    sign = 1 if alike else -1
    pairs = sign * cosines[np.ix_(shown, shown)]
    np.fill_diagonal(pairs, -np.inf)
    taken = list(np.unravel_index(pairs.argmax(), pairs.shape))
    np.fill_diagonal(pairs, 0)
    while len(taken) < count:
        left = np.setdiff1d(np.arange(len(shown)), taken)
        taken.append(left[pairs[np.ix_(left, taken)].mean(1).argmax()])
    return sorted(shown[np.array(taken)].tolist())


def row_of(data: Data, classes: list[int], start: str, seeds: int) -> dict[str, Any]:
    """All weights and seeds of one part from one start, trained as one pack."""
    columns = torch.tensor(classes)
    labels = data.labels[:, columns]
    positives = data.pairs[len(data.names) :][columns]
    pairs = torch.cat([data.pairs[columns], positives])
    features = MemoryFeatures(data.local, labels, grid=data.grid)
    recipes = [
        Recipe(preset="robust", initial=start, mfi_weight=weight)
        for weight in WEIGHTS
        for _ in range(seeds)
    ]
    training = Training(recipes, pairs, seeds=[*range(seeds)] * len(WEIGHTS))
    fit(training, features, data.train, seed=0)
    test = data.test[(labels[data.test] == 1).any(1).numpy()]
    scores = [
        100
        * mean_average_precision(predict(training.model(n), features, test, pairs), labels[test])
        for n in range(len(recipes))
    ]
    watched = [line["inter_class_cosine"] for line in training.watch()]
    cosine = cosine_matrix(positives)
    own = ~torch.eye(len(classes), dtype=torch.bool)
    row: dict[str, Any] = {
        "classes": len(classes),
        "text_cosine": round(float(cosine[own].mean()), 3),
        "start": start,
    }
    without = scores[:seeds]
    for number, weight in enumerate(WEIGHTS):
        mine = scores[number * seeds : (number + 1) * seeds]
        row[f"map_{weight:g}"] = round(statistics.fmean(mine), 2)
        row[f"map_{weight:g}_std"] = round(statistics.stdev(mine), 2)
        row[f"cosine_{weight:g}"] = round(
            statistics.fmean(watched[number * seeds : (number + 1) * seeds]), 3
        )
        if weight:
            found = paired_interval(np.subtract(mine, without).tolist())
            row[f"gain_{weight:g}"] = [round(value, 2) for value in found]
    return row


def main() -> None:
    """Train and score as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, required=True, help="features in a file")
    parser.add_argument(
        "--part", type=int, default=20, help="classes that are most, or least, alike"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep it under benchmarks/results")
    asked = parser.parse_args()
    data = features_of(asked.features)
    parts = {
        "all": [*range(len(data.names))],
        "most alike": part(data, asked.part, alike=True),
        "least alike": part(data, asked.part, alike=False),
    }
    rows = []
    for name, classes in parts.items():
        for start in STARTS:
            rows.append({"part": name, **row_of(data, classes, start, asked.seeds)})
            print(rows[-1], flush=True)
    result = {
        "preset": "robust",
        "source": asked.features.stem,
        "commit": git_commit(),
        "part": {name: [data.names[n] for n in own] for name, own in parts.items()},
        "rows": rows,
    }
    common.tell(f"disentangling-{asked.features.stem}", result, save=asked.save)


if __name__ == "__main__":
    main()
