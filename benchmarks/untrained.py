"""How far can names be trusted that projectors were not trained on?

    python benchmarks/untrained.py                       the data set shapes and the tiny CLIP
    python benchmarks/untrained.py --features FILE.npz   features of one's own

Classes are parted into folds. Projectors are trained on all classes but those of one fold, on all
training images, and asked on the test images for the classes of that fold, which they have never
been told of, as well as for those that they know. Beside them stands frozen CLIP: the largest
cosine of a location with the class's text. Names of things that no image shows are asked for too.

FILE.npz holds `local` [images, locations, dim] with the mean token first, `labels` [images,
classes] of 0 and 1, `pair_texts` [2 classes, dim], negatives first, `class_texts` [classes, dim],
`class_names`, `grid`, `train_rows` and `dev_rows`.

`--save` keeps the result under benchmarks/results. docs/untrained_names.md reads it.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch
from torch import Tensor

from dclip.provenance import git_commit

ABSENT = (
    "dog", "cat", "horse", "person", "car", "bus", "bicycle", "airplane", "boat", "chair",
    "bottle", "pizza", "laptop", "umbrella", "elephant", "train",
)  # fmt: skip


class Data(NamedTuple):
    """Features of all images, with the rows to train on and those to test on."""

    local: Tensor
    labels: Tensor
    names: tuple[str, ...]
    pairs: Tensor
    classes: Tensor
    absent: Tensor | None
    grid: tuple[int, int]
    train: np.ndarray
    test: np.ndarray


def shapes(limit: int | None) -> Data:
    """The embedded data set by the tiny CLIP."""
    from dclip import encode_class_names, encode_prompt_pairs, load_backbone
    from dclip.data.pixels import normalise
    from dclip.world.dataset import ShapesListing

    clip = load_backbone("tiny")
    local, labels, counts = [], [], []
    for split in ("train", "test"):
        listing = ShapesListing(split)
        count = min(len(listing), limit or len(listing))
        counts.append(count)
        for start in range(0, count, 32):
            samples = [listing.read(row) for row in range(start, min(start + 32, count))]
            side = (clip.resolution, clip.resolution)
            images = [np.asarray(sample.image.resize(side)) for sample in samples]
            pixels = normalise(torch.from_numpy(np.stack(images)), clip.mean, clip.std)
            local.append(clip.encode_images(pixels).local.half())
            labels += [torch.from_numpy(np.asarray(sample.labels)).int() for sample in samples]
    names = tuple(ShapesListing("test").class_names)
    rows = np.arange(sum(counts))
    return Data(
        torch.cat(local),
        torch.stack(labels),
        names,
        encode_prompt_pairs(clip, names).float(),
        encode_class_names(clip, names).float(),
        encode_prompt_pairs(clip, ABSENT).float(),
        clip.grid(clip.resolution, clip.resolution),
        rows[: counts[0]],
        rows[counts[0] :],
    )


def features_of(path: Path) -> Data:
    """Features in a file."""
    with np.load(path, allow_pickle=False) as kept:
        rows, columns = (int(side) for side in kept["grid"])
        return Data(
            torch.from_numpy(kept["local"]),
            torch.from_numpy(kept["labels"]).int(),
            tuple(map(str, kept["class_names"])),
            torch.from_numpy(kept["pair_texts"]).float(),
            torch.from_numpy(kept["class_texts"]).float(),
            None,
            (rows, columns),
            kept["train_rows"],
            kept["dev_rows"],
        )


def measured(scores: Tensor, labels: Tensor, *, are_probabilities: bool) -> dict[str, float]:
    """mAP, and of probabilities how often they are wrong at one half, and how far off they are."""
    from dclip.metrics import mean_average_precision

    found = {"map": mean_average_precision(scores, labels)}
    if are_probabilities:
        present = labels == 1
        found["false_positive_rate"] = float((scores[~present] >= 0.5).float().mean())
        found["true_positive_rate"] = float((scores[present] >= 0.5).float().mean())
        found["mean_probability_absent"] = float(scores[~present].mean())
        found["mean_probability_present"] = float(scores[present].mean())
        found["calibration_error"] = calibration_error(scores.flatten(), present.flatten())
    return found


def calibration_error(probabilities: Tensor, present: Tensor) -> float:
    """Mean distance, over ten bins weighted by their size, of probability and share present."""
    bins = (probabilities * 10).long().clamp(max=9)
    error = 0.0
    for own in range(10):
        inside = bins == own
        if inside.any():
            gap = probabilities[inside].mean() - present[inside].float().mean()
            error += float(inside.float().mean() * gap.abs())
    return error


def ask(data: Data, folds: int, seeds: int, epochs: int | None, preset: str) -> dict[str, Any]:
    """Every fold left out once, for every seed."""
    from dclip import MemoryFeatures, Recipe, Training, fit, predict, presence_probability
    from dclip.logits import similarity_maps
    from dclip.methods.anchored import for_classes

    count = len(data.names)
    order = np.random.default_rng(0).permutation(count)
    truth = data.labels[data.test]
    own = {} if epochs is None else {"epochs": epochs}
    recipe = Recipe(preset=preset, **own)
    frozen = torch.cat(
        [
            similarity_maps(data.local[rows][:, 1:].float(), data.classes).amax(dim=2)
            for rows in np.array_split(data.test, max(1, len(data.test) // 100))
        ]
    )
    rows: dict[str, list[dict[str, float]]] = {"clip": [], "unseen": [], "seen": [], "absent": []}
    for fold in range(folds):
        unseen = np.sort(order[fold::folds])
        seen = np.setdiff1d(np.arange(count), unseen)
        texts = data.pairs[np.concatenate([seen, count + seen])]
        training = Training([recipe] * seeds, texts, seeds=list(range(seeds)))
        features = MemoryFeatures(data.local, data.labels[:, seen], grid=data.grid)
        fit(training, features, data.train, seed=0)
        rows["clip"].append(measured(frozen[:, unseen], truth[:, unseen], are_probabilities=False))
        for seed in range(seeds):
            model = training.model(seed)
            told = predict(model, features, data.test, data.pairs)
            for which, columns in (("unseen", unseen), ("seen", seen)):
                scores, labels = told[:, columns], truth[:, columns]
                rows[which].append(measured(scores, labels, are_probabilities=True))
            if data.absent is not None:
                with torch.no_grad():
                    local = data.local[data.test].float()
                    asked = for_classes(model, [None] * (len(data.absent) // 2))
                    logits = asked(local, data.absent).pair_logits
                    scores = presence_probability(logits)
                rows["absent"].append(
                    {
                        "false_positive_rate": float((scores >= 0.5).float().mean()),
                        "mean_probability_absent": float(scores.mean()),
                        "worst_name": float((scores >= 0.5).float().mean(dim=0).max()),
                    }
                )
        print(f"fold {fold + 1} of {folds}: left out {', '.join(data.names[i] for i in unseen)}")
    return {
        name: {
            key: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
            for key in own[0]
            for values in [[row[key] for row in own]]
        }
        for name, own in rows.items()
        if own
    }


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="left out: the recipe's")
    parser.add_argument("--preset", default="robust")
    parser.add_argument("--limit", type=int, help="images of each split of shapes")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    started = time.perf_counter()
    own = arguments.features
    data = features_of(own) if own else shapes(arguments.limit)
    result = {
        "data": own.name if own else "shapes, tiny CLIP",
        "commit": git_commit(),
        "classes": len(data.names),
        "folds": arguments.folds,
        "seeds": arguments.seeds,
        "epochs": arguments.epochs,
        "train_images": len(data.train),
        "test_images": len(data.test),
        **ask(data, arguments.folds, arguments.seeds, arguments.epochs, arguments.preset),
    }
    result["seconds"] = round(time.perf_counter() - started)
    common.tell(f"untrained-{own.stem if own else 'shapes'}", result, save=arguments.save)


if __name__ == "__main__":
    main()
