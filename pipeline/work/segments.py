"""Images and the boxes around their segments to scores of frozen CLIP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dclip.backbones import preparation_of
from dclip.data.listing import Sample
from dclip.data.windows import whole_view
from dclip.encoding import encode_batches
from dclip.logits import zero_shot_scores
from dclip.methods.method import Task
from dclip.methods.segments import fuse_scores, segment_boxes
from dclip.metrics import mean_average_precision
from dclip.segmentation import Rule, segment_images
from dclip.templates import ZERO_SHOT_TEMPLATE
from pipeline.cluster.makers import Maker, every_group
from pipeline.features.opened import open_backbone
from pipeline.features.preflight import require_images
from pipeline.settings.config import Config
from pipeline.work.plans import SegmentsPlan
from pipeline.work.systems import build_systems, encode_texts


class SegmentScorer(Maker[Sample]):
    """A backbone and a method that segments, to score images and their segments.

    Args:
        config: Settings.
        plan: What is scored.
        texts: Of the classes.
        device: ``"cpu"`` or ``"cuda"``.
        threads: That read images.
    """

    def __init__(
        self, config: Config, plan: SegmentsPlan, texts: Task, device: str, threads: int
    ) -> None:
        super().__init__(config, config.segments_mlr, device, threads)
        self._plan = plan
        self._area = config.segments_mlr.area
        self._prepare = preparation_of(self._backbone)
        self._texts = texts.texts.features.to(device)
        self._systems = build_systems([plan.system], texts, self._backbone, device=device)

    def make(self, group: int) -> dict[str, np.ndarray]:
        """Labels and scores of the images of a group: of the whole, of the segments, their number.

        Raises:
            ImageError: An image cannot be used; the message names the file.
        """
        parts = []
        for samples in self.batches(self._plan.rows(group), group):
            labels = np.stack([sample.labels for sample in samples])
            parts.append((labels, *self._score([sample.image for sample in samples])))
        names = ("labels", "whole", "segments", "counts")
        return {
            name: np.concatenate(arrays)
            for name, arrays in zip(names, zip(*parts, strict=True), strict=True)
        }

    def read(self, row: int) -> Sample:
        """Image and label vector."""
        return self._plan.listing.read(row)

    def _score(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        side = self._backbone.resolution
        masks = segment_images(
            self._backbone,
            [whole_view(image, side, self._prepare.interpolation) for image in images],
            self._systems,
            Rule(),
            batch_size=self._batch,
            precision=self._precision,
            device=self._device,
        )
        name = self._plan.system.name
        boxes = [segment_boxes(maps[name], area=self._area) for maps in masks]
        crops = [image.crop(box) for image, own in zip(images, boxes, strict=True) for box in own]
        counts = [len(own) for own in boxes]
        of_crops = torch.split(self._clip(crops), counts)
        segments = torch.stack([own.amax(dim=0) for own in of_crops])
        return self._clip(images).numpy(), segments.numpy(), np.array(counts)

    def _clip(self, images: Sequence[Image.Image]) -> Tensor:
        """CLIP's softmax over the classes for each image, on the CPU."""

        def resized(start: int) -> Tensor:
            batch = images[start : start + self._batch]
            side = self._backbone.resolution
            return torch.from_numpy(np.stack([np.array(self._prepare(one, side)) for one in batch]))

        scores = [
            zero_shot_scores(features.embedding, self._texts).softmax(dim=1).cpu()
            for features in encode_batches(
                self._backbone,
                map(resized, range(0, len(images), self._batch)),
                precision=self._precision,
                device=self._device,
            )
        ]
        return torch.cat(scores)


def score_all(config: Config, plan: SegmentsPlan) -> list[dict[str, np.ndarray]]:
    """The scores of all groups, of which those that are missing are made.

    Raises:
        StageError: An image or the checkpoint cannot be used, or a worker failed; what was made is
            kept.
    """

    def arguments() -> Sequence[Any]:
        require_images(plan.listing, plan.num_images)
        names = [(name,) for name in plan.listing.class_names]
        texts = encode_texts(open_backbone(config), names, (ZERO_SHOT_TEMPLATE,))
        # no worker is the first to find damage
        build_systems([plan.system], texts, open_backbone(config), device="cpu")
        return config, plan, texts

    return every_group(
        config, config.segments_mlr, "segments_mlr", plan, plan.scores, SegmentScorer, arguments
    )


@dataclass(frozen=True)
class Fused:
    """What images and their segments say together.

    Attributes:
        segments_per_image: Mean number of segments.
        map: mAP at each weight of the segments; None where no label is 1.
    """

    segments_per_image: float
    map: dict[float, float | None]


def fuse_all(groups: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]) -> Fused:
    """The scores of all groups, fused at every weight.

    Args:
        groups: ``labels``, ``whole``, ``segments`` and ``counts`` of the images of each.
        weights: Of the segments, in [0, 1].
    """

    def together(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([group[name] for group in groups]))

    truth, whole, segments = map(together, ("labels", "whole", "segments"))
    has_positive = bool((truth == 1).any())
    return Fused(
        float(together("counts").numpy().mean()),
        {
            weight: mean_average_precision(fuse_scores(whole, segments, weight), truth)
            if has_positive
            else None
            for weight in weights
        },
    )
