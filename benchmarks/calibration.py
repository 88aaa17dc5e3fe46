"""Thresholds of each class and calibrated probabilities against 0.5, on the embedded scenes.

    python benchmarks/calibration.py [--seeds 5] [--epochs 20] [--images 4000] [--save]

DCLIP is trained with several seeds of its weights, each in turn with its presets `robust` and
`anchored`; a tenth of the training images is held out and gives thresholds (best F1) and Platt's
scaling. What is told is of the 1,000 test images: CF1 and OF1 at 0.5 and at the thresholds, the
expected calibration error before and after, and of names that were not trained how well the cosine
that suits the training's own classes tells which are there.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from dclip.backbones import load_backbone
from dclip.calibration import is_present, scaling_of
from dclip.clip_settings import ClipSettings
from dclip.data.given import GivenImages
from dclip.fitting.held_out import evidence_of
from dclip.metrics import expected_calibration_error, f1_scores, mean_average_precision
from dclip.provenance import git_commit
from dclip.recognition.features import features_of
from dclip.recognition.training import train, wanted_of
from dclip.world.dataset import ShapesListing

PRESETS = ("robust", "anchored")


def images_of(split: str, count: int) -> GivenImages:
    """The first scenes of a split."""
    listing = ShapesListing(split)
    count = min(count, len(listing))
    samples = [listing.read(row) for row in range(count)]
    labels = np.stack([sample.labels for sample in samples]).astype(np.int8)
    return GivenImages.of([sample.image for sample in samples], labels, listing.class_names)


def main() -> None:
    """Train, calibrate, test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    started = time.perf_counter()
    cache = asked.cache or Path(tempfile.mkdtemp(prefix="dclip-calibration-"))
    backbone, clip = load_backbone("tiny"), ClipSettings("tiny")
    learned, tested = images_of("train", asked.images), images_of("test", 1000)
    truth = torch.from_numpy(tested.labels)
    test = features_of(tested, truth, backbone, cache=cache).source
    rows = np.arange(len(test))
    told: dict[str, Any] = {}
    for preset in PRESETS:
        lines = []
        for seed in range(asked.seeds):
            wanted = wanted_of("dclip", {"epochs": asked.epochs}, preset=preset, seed=seed)
            made = train(learned, backbone, clip, wanted, cache=cache, progress=False)
            known = made.about.calibration
            assert known is not None
            evidence, cosines = evidence_of(made.method, test, rows)
            assert cosines is not None
            assert known.untrained_cosine is not None
            raw, calibrated = evidence.sigmoid(), scaling_of(known).apply(evidence).sigmoid()
            half, own = (
                f1_scores(raw, truth),
                f1_scores(is_present(known, calibrated).double(), truth),
            )
            at_half = f1_scores(calibrated, truth)
            new = f1_scores((cosines > known.untrained_cosine).double(), truth)
            lines.append(
                {
                    "seed": seed, "map": mean_average_precision(raw, truth),
                    "cf1_half": half.cf1, "cf1_calibrated_half": at_half.cf1, "cf1_chosen": own.cf1,
                    "of1_half": half.of1, "of1_chosen": own.of1,
                    "ece": expected_calibration_error(raw, truth),
                    "ece_calibrated": expected_calibration_error(calibrated, truth),
                    "of1_of_clips_cosine": new.of1,
                }
            )  # fmt: skip
            print(preset, json.dumps({k: round(v, 4) for k, v in lines[-1].items()}), flush=True)
        told[preset] = lines
        for key in lines[0]:
            if key != "seed":
                values = [100 * line[key] for line in lines]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                print(f"{preset:9} {key:22} {statistics.fmean(values):6.2f} ± {spread:.2f}")
    result = {
        "images": asked.images, "epochs": asked.epochs, "presets": told,
        "seconds": round(time.perf_counter() - started, 1), "commit": git_commit(),
    }  # fmt: skip
    common.tell("calibration-shapes", result, save=asked.save)


if __name__ == "__main__":
    main()
