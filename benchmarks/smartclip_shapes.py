"""SmartCLIP against the same CLIP fine-tuned without masks, on the captions of drawn scenes.

    python benchmarks/smartclip_shapes.py                 3 seeds of each on two cores
    python benchmarks/smartclip_shapes.py --save          keep the result in benchmarks/results

Both train all of the small CLIP on the long captions of the scenes (a sentence for each object and
one for the ground), of which each step draws the first so many; batches, steps, rates and draws are
the same. Scored are 1,000 other scenes: recall of the whole caption by its image and of the image
by its caption, both by the plain cosine, as published, and the mean cosine between the captions of
different images; of SmartCLIP also behind their masks. Frozen CLIP is scored beside them, with its
positions drawn out. Means and standard deviations are over the seeds of weights, shuffle and draws.
The last line of stdout is JSON.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import tell
from torch import Tensor

from dclip.backbones import load_backbone
from dclip.fitting.fit import EpochReport, fit
from dclip.fitting.images import ImageSource
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.method import Task, initial
from dclip.methods.pixels.settings import SmartCLIPSettings
from dclip.methods.pixels.smartclip import SmartCLIP
from dclip.methods.settings import of_preset
from dclip.metrics import inter_class_cosine, mask_overlap, retrieval_recall
from dclip.world.dataset import ShapesListing

PREPARED = 250  # images that are drawn at a time


class LongCaptions:
    """Scenes with their long captions alone, drawn once: a source without features.

    Args:
        split: Of the scenes.
        count: How many, the first.
        resolution: Side in pixels.
    """

    def __init__(self, split: str, count: int, resolution: int) -> None:
        listing = ShapesListing(split)
        images = ImageSource(
            listing, np.arange(count), torch.zeros(count, 0, dtype=torch.int8),
            resolution=resolution,
        )  # fmt: skip
        rows = [np.arange(a, min(a + PREPARED, count)) for a in range(0, count, PREPARED)]
        self.all_pixels = torch.cat([images.pixels(part) for part in rows])
        images.close()
        self.texts = [long for _, long in listing.captions(np.arange(count))]
        self.labels = images.labels
        self.grid, self.views = (0, 0), 1

    def local(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """There are none."""
        raise ValueError(f"no features of rows {rows}, views {views}")

    def pixels(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tensor:
        """Scenes as they are."""
        assert draws is None
        return self.all_pixels[torch.from_numpy(rows)]

    def captions(self, rows: np.ndarray) -> list[tuple[str, ...]]:
        """The long one."""
        return [(self.texts[row],) for row in rows]


@torch.no_grad()
def score(method: SmartCLIP, test: LongCaptions) -> dict[str, float]:
    """Recall of both directions, and how alike captions are."""
    method.eval()
    images, texts, masks = [], [], []
    for start in range(0, len(test.texts), 50):
        images.append(method.embed_images(test.all_pixels[start : start + 50]))
        encoded = method.encode(test.texts[start : start + 50])
        texts.append(encoded.features)
        if encoded.mask_logits is not None:
            masks.append((encoded.mask_logits >= 0).float())
    features = torch.cat(texts)
    recall = retrieval_recall(torch.cat(images), features, torch.arange(len(features)))
    found = {f"t2i_r{k}": value for k, value in recall.text_to_image.items()}
    found |= {f"i2t_r{k}": value for k, value in recall.image_to_text.items()}
    found["caption_cosine"] = inter_class_cosine(features)
    if masks:
        own = torch.cat(masks)
        found["masked_caption_cosine"] = inter_class_cosine(own * features)
        found["mask_overlap"] = mask_overlap(own)
        found["mask_open"] = float(own.mean())
    return found


def train(
    task: Task, own: SmartCLIPSettings, loop: Loop, train: LongCaptions, seed: int
) -> SmartCLIP:
    """A training; what each epoch came to is told."""
    pack = Pack(SmartCLIP, [own], loop, task, seeds=[seed])

    def on_epoch(reports: list[EpochReport]) -> None:
        terms = ", ".join(f"{name} {value:.3f}" for name, value in reports[0].losses.items())
        print(f"  {own.masks}, seed {seed}, epoch {reports[0].epoch}: {terms}", flush=True)

    fit(pack, train, np.arange(len(train.texts)), seed=seed, on_epoch=on_epoch)
    method = pack.method()
    assert isinstance(method, SmartCLIP)
    return method


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation of each number."""
    return {
        name: [
            round(statistics.mean(row[name] for row in rows), 4),
            round(statistics.stdev(row[name] for row in rows), 4) if len(rows) > 1 else 0.0,
        ]
        for name in rows[0]
    }


def main() -> None:
    """Train and score every seed with masks and without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tiny-vit")
    parser.add_argument("--pretrained", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--set", nargs="*", default=[], help="of the loop or the method: KEY=VALUE")
    parser.add_argument("--masks", nargs="*", default=["hard", "none"])
    parser.add_argument("--save", action="store_true", help="keep the result")
    given = parser.parse_args()
    backbone = load_backbone(given.backbone, pretrained=given.pretrained)
    side = backbone.resolution
    started = time.perf_counter()
    train_split = LongCaptions("train", given.images, side)
    test_split = LongCaptions("test", given.test, side)
    print(f"scenes drawn in {time.perf_counter() - started:.0f} s", flush=True)
    features = Task.of_features((), torch.ones(0, backbone.embed_dim))
    task = Task((), features.pairs, features.texts, backbone)
    loop, own = of_preset(SmartCLIPSettings, "robust")
    changes = dict(word.split("=", 1) for word in given.set)
    loop = Loop.model_validate(
        loop.model_dump() | {k: v for k, v in changes.items() if k in Loop.model_fields}
    )
    of_method = {k: v for k, v in changes.items() if k not in Loop.model_fields}
    frozen = initial(SmartCLIP, SmartCLIPSettings(masks="none"), task, seed=0)
    assert isinstance(frozen, SmartCLIP)
    result: dict[str, Any] = {
        "backbone": backbone.name,
        "weights": Path(given.pretrained).name if given.pretrained else "packaged",
        "images": given.images,
        "test": given.test,
        "seeds": given.seeds,
        "loop": loop.model_dump(mode="json"),
        "frozen": summary([score(frozen, test_split)]),
    }
    print("frozen", result["frozen"], flush=True)
    for masks in given.masks:
        settings = SmartCLIPSettings.model_validate(own.model_dump() | of_method | {"masks": masks})
        rows, begun = [], time.perf_counter()
        for seed in range(given.seeds):
            rows.append(score(train(task, settings, loop, train_split, seed), test_split))
            print(masks, seed, {k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
        minutes = (time.perf_counter() - begun) / 60 / given.seeds
        result[masks] = summary(rows) | {
            "each": [row["t2i_r1"] for row in rows], "minutes": round(minutes, 2)
        }  # fmt: skip
    tell("smartclip_shapes-cpu", result, save=given.save)


if __name__ == "__main__":
    main()
