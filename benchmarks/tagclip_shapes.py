"""TagCLIP against the best location of frozen CLIP, on drawn scenes, with its parts left out.

    python benchmarks/tagclip_shapes.py                   three draws of 400 scenes
    python benchmarks/tagclip_shapes.py --save            keep the result in benchmarks/results
    python benchmarks/tagclip_shapes.py --pretrained FILE.safetensors

Nothing is trained, so that seeds are those of the scenes: each draws other images of the same kind.
Rows are mAP in percent, and what each is above zero-shot by the best location, over the same
seeds. `zero_shot_local` looks at CLIP's own patch tokens; `maskclip_local` at those that keep their
values in the last block, which TagCLIP begins with. One prompt: in place of the 85, which the small
ViT was not trained on. The backbone is the small ViT of the package. The last line of stdout is
JSON.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from common import tell

from dclip.backbones import load_backbone
from dclip.encoding import encode_batches
from dclip.fitting.batches import Batch
from dclip.fitting.fit import scores_of
from dclip.fitting.images import ImageSource
from dclip.methods.method import Method, Task
from dclip.methods.pixels.settings import TagCLIPSettings
from dclip.methods.pixels.tagclip import TagCLIP
from dclip.methods.settings import ZeroShotLocalSettings, ZeroShotSettings
from dclip.methods.zero_shot import ZeroShot, ZeroShotLocal
from dclip.metrics import mean_average_precision
from dclip.templates import ZERO_SHOT_TEMPLATE
from dclip.world.dataset import ShapesListing

LOCAL = "zero_shot_local"
ROWS: dict[str, dict[str, Any]] = {
    "tagclip": {},
    "one prompt": {"templates": (ZERO_SHOT_TEMPLATE,)},
    "one prompt, no second look": {"templates": (ZERO_SHOT_TEMPLATE,), "crop_weight": 0.0},
    "as the authors' code": TagCLIPSettings.presets["author"].own,
}


def labels_of(listing: ShapesListing, count: int) -> torch.Tensor:
    """Which classes each scene shows."""
    rows = [listing.read(index).labels for index in range(count)]
    return torch.from_numpy(np.stack(rows)).to(torch.int8)


def measure(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """The mAP of every row on one draw of scenes."""
    backbone = load_backbone("tiny-vit", pretrained=options.pretrained)
    listing = ShapesListing("test", seed=seed)
    labels = labels_of(listing, options.images)
    source = ImageSource(
        listing, np.arange(options.images), labels,
        resolution=backbone.stride, form="native", threads=1,
    )  # fmt: skip
    task = Task.of(backbone, [(name,) for name in listing.class_names])
    by_location = ZeroShotLocal(ZeroShotLocalSettings(), task)
    frozen: dict[str, tuple[str, Method[Any]]] = {
        "zero_shot": ("value", ZeroShot(ZeroShotSettings(), task)),
        LOCAL: ("value", by_location),
        "maskclip_local": ("maskclip", by_location),
    }
    found: dict[str, list[torch.Tensor]] = {name: [] for name in frozen}
    rows = np.arange(options.images)
    for row in rows:  # at their own size, as TagCLIP sees them
        pixels = source.pixels(rows[row : row + 1])
        for name, (kind, method) in frozen.items():
            (features,) = encode_batches(backbone, [pixels], kind=kind)
            batch = Batch(features.local, labels[row, None], embedding=features.embedding)
            found[name].append(method.scores(batch))
    result = {
        name: mean_average_precision(torch.cat(parts), labels) for name, parts in found.items()
    }
    for name, own in ROWS.items():
        method = TagCLIP(TagCLIPSettings(**own), task).eval()
        result[name] = mean_average_precision(scores_of(method, source, rows), labels)
        print(f"seed {seed}: {name}: {100 * result[name]:.1f}", flush=True)
    source.close()
    return result


def main() -> None:
    """Measure, print a table, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrained", help="weights of the small ViT; left out: the packaged")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    by_seed = [measure(options, seed) for seed in range(options.seeds)]
    rows = []
    for name in by_seed[0]:
        values = [100 * own[name] for own in by_seed]
        gains = [100 * (own[name] - own[LOCAL]) for own in by_seed]
        rows.append({"row": name, "map": values, "above_local": gains})
        mean, gain = statistics.fmean(values), statistics.fmean(gains)
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name:32} {mean:6.2f} ± {spread:4.2f}   {gain:+6.2f}")
    seconds = time.perf_counter() - started
    result = {"images": options.images, "rows": rows, "seconds": round(seconds, 1)}
    tell("tagclip-shapes", result, save=options.save)


if __name__ == "__main__":
    main()
