"""Segments of images to multi-label scores of frozen CLIP: Table 5 of the paper.

Projectors segment an image, CLIP scores the image and the box around each segment, and both are
averaged. Ray actors work through groups of images and leave the two scores of each image; the
report fuses them at every weight, so that one pass gives all rows.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dclip.templates import ZERO_SHOT_TEMPLATE
from dclip.words import counted
from pipeline.cluster.groups import Groups, read_arrays
from pipeline.cluster.makers import Maker, every_group
from pipeline.features.plan import describe_backbone, open_dataset, tested_on_train, warnings_of
from pipeline.features.preflight import require_images, require_labels
from pipeline.records.choice import NoCheckpointError, take_checkpoint
from pipeline.settings.config import Config, SegmentsMlrConfig
from pipeline.terminal.cli import Report, remarks
from pipeline.terminal.errors import UsageError
from pipeline.work.systems import (
    SystemPlan,
    build_systems,
    encode_texts,
    read_origin,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from dclip.data.listing import Listing, Sample
    from dclip.methods.method import Task

log = logging.getLogger(__name__)


_FORMAT, _FORMAT_HALF = 1, 2  # format 1 scored images in float32 whatever was asked for


@dataclass(frozen=True)
class SegmentsPlan(Groups):
    """What is scored; the groups' files hold scores.

    Attributes:
        listing: Images and label vectors.
        system: What segments.
    """

    listing: "Listing"
    system: SystemPlan


def plan_segments(config: Config) -> SegmentsPlan:
    """What the settings ask for.

    Raises:
        UsageError: A wrong setting, data set, split or backbone.
        StageError: The checkpoint is missing, damaged, or of another backbone.
    """
    from dclip.store.shards import digest, file_digest

    wanted = config.segments_mlr
    split = wanted.split or config.test_split
    listing = open_dataset(config, split)
    num_images = min(len(listing), wanted.limit or len(listing))
    require_labels(listing, num_images)
    backbone = describe_backbone(config)
    if wanted.kind not in backbone.paths:
        raise UsageError(
            f"backbone {backbone.name} has no features of kind {wanted.kind!r}; it has "
            + ", ".join(backbone.paths)
        )
    checkpoint = wanted.checkpoint or take_checkpoint(config)
    about, trained_kind = read_origin(checkpoint, backbone)
    system = SystemPlan(
        about.name,
        wanted.kind,
        checkpoint.absolute(),
        trained_kind,
        tuple(about.class_names),
        wanted.only_present,
    )
    identity = {
        "format": _FORMAT if wanted.precision in ("auto", "float32") else _FORMAT_HALF,
        "listing": listing.identity(),
        "num_images": num_images,
        "settings": wanted.model_dump(include={"area", "only_present", "precision", "group_size"}),
        "features": [backbone.space(wanted.kind), backbone.space(trained_kind)],
        "weights": file_digest(checkpoint),
    }
    name = f"segments-mlr-{config.dataset_slug}-{split}-{digest(identity)[:12]}"
    folder = config.output.absolute() / "segments_mlr" / name
    return SegmentsPlan(name, folder, num_images, wanted.group_size, listing, system)


class SegmentScorer(Maker["Sample"]):
    """A backbone and projectors that score images and their segments.

    Args:
        config: Settings.
        plan: What is scored.
        texts: Of the classes.
        device: ``"cpu"`` or ``"cuda"``.
        threads: That read images.
    """

    def __init__(
        self, config: Config, plan: SegmentsPlan, texts: "Task", device: str, threads: int
    ) -> None:
        super().__init__(config, config.segments_mlr, device, threads)
        self._plan = plan
        self._area = config.segments_mlr.area
        self._texts = texts.texts.features.to(device)
        self._systems = build_systems([plan.system], texts, device=device)

    def make(self, group: int) -> "dict[str, np.ndarray]":
        """Labels and scores of the images of a group: of the whole, of the segments, their number.

        Raises:
            ImageError: An image cannot be used; the message names the file.
        """
        import numpy as np

        parts = []
        for samples in self.batches(self._plan.rows(group), group):
            labels = np.stack([sample.labels for sample in samples])
            parts.append((labels, *self._score([sample.image for sample in samples])))
        names = ("labels", "whole", "segments", "counts")
        return {name: np.concatenate([part[place] for part in parts]) for place, name in
                enumerate(names)}  # fmt: skip

    def read(self, row: int) -> "Sample":
        """Image and label vector."""
        return self._plan.listing.read(row)

    def _score(
        self, images: "Sequence[Image.Image]"
    ) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        import numpy as np
        import torch

        from dclip.data.windows import whole_view
        from dclip.methods.segments import segment_boxes
        from dclip.segmentation import Rule, segment_images

        side = self._backbone.resolution
        masks = segment_images(
            self._backbone,
            [whole_view(image, side) for image in images],
            self._systems,
            Rule(),
            batch_size=self._batch,
            precision=self._precision,
            device=self._device,
        )
        boxes = [segment_boxes(found[self._plan.system.name], area=self._area) for found in masks]
        crops = [image.crop(box) for image, own in zip(images, boxes, strict=True) for box in own]
        counts = [len(own) for own in boxes]
        of_crops = torch.split(self._clip(crops), counts)
        segments = torch.stack([own.amax(dim=0) for own in of_crops])
        return self._clip(images).numpy(), segments.numpy(), np.array(counts)

    def _clip(self, images: "Sequence[Image.Image]") -> "Tensor":
        """CLIP's softmax over the classes for each image, on the CPU."""
        import numpy as np
        import torch

        from dclip.data.images import resize_image
        from dclip.encoding import encode_batches
        from dclip.logits import zero_shot_scores

        def resized(start: int) -> "Tensor":
            batch = images[start : start + self._batch]
            side = self._backbone.resolution
            return torch.from_numpy(np.stack([np.array(resize_image(one, side)) for one in batch]))

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


def score_all(config: Config, plan: SegmentsPlan) -> "list[dict[str, np.ndarray]]":
    """The scores of all groups, of which those that are missing are made.

    Raises:
        StageError: An image cannot be used, or a worker failed; what was made is kept.
    """

    def arguments() -> Sequence[Any]:
        from pipeline.features.opened import open_backbone

        require_images(plan.listing, plan.num_images)
        names = [(name,) for name in plan.listing.class_names]
        texts = encode_texts(open_backbone(config), names, (ZERO_SHOT_TEMPLATE,))
        return config, plan, texts

    read = partial(_read, plan)
    return every_group(
        config, config.segments_mlr, "segments_mlr", plan, read, SegmentScorer, arguments
    )


def _read(plan: SegmentsPlan, group: int) -> "dict[str, np.ndarray] | None":
    """The scores of a group; None if they are not there or not of its images."""
    arrays = read_arrays(plan.path(group))
    shape = (len(plan.rows(group)), len(plan.listing.class_names))
    is_whole = arrays is not None and all(
        name in arrays and arrays[name].shape == shape for name in ("labels", "whole", "segments")
    )
    return arrays if is_whole else None


def report_name(config: Config, plan: SegmentsPlan) -> str:
    """Name of the report: that of its scores, and a hash of the weights if they are not usual."""
    from dclip.store.shards import digest

    weights = sorted({0.0, *config.segments_mlr.weights, 1.0})
    usual = SegmentsMlrConfig.model_fields["weights"].default
    if weights == [0.0, *usual, 1.0]:
        return plan.name
    head, _, own = plan.name.rpartition("-")
    return f"{head}-{digest({'scores': own, 'weights': weights})[:12]}"


def run(config: Config) -> Report:
    """Score all images, fuse at every weight, write and record the report, print the table."""
    import numpy as np
    import torch

    from dclip.methods.segments import fuse_scores
    from dclip.metrics import mean_average_precision
    from dclip.store.paths import write_text
    from pipeline.records.provenance import git_commit
    from pipeline.records.tracking import Tracker

    started = time.perf_counter()
    plan = plan_segments(config)
    groups = score_all(config, plan)
    truth, whole, segments = (
        torch.from_numpy(np.concatenate([group[name] for group in groups]))
        for name in ("labels", "whole", "segments")
    )
    weights = sorted({0.0, *config.segments_mlr.weights, 1.0})
    has_positive = bool((truth == 1).any())
    if len(plan.listing.class_names) == 1:
        log.warning("segments_mlr: of one class alone CLIP's share is always 1, so nothing is told")
    name = report_name(config, plan)
    report: Report = {
        "stage": "segments_mlr",
        "dataset": config.dataset,
        "split": plan.listing.split,
        "images": plan.num_images,
        "segments_per_image": float(np.concatenate([g["counts"] for g in groups]).mean()),
        "map": {
            f"{weight:g}": mean_average_precision(fuse_scores(whole, segments, weight), truth)
            if has_positive
            else None
            for weight in weights
        },
        "checkpoint": str(plan.system.checkpoint),
        "features": plan.system.kind,
        "candidates": "classes found present" if plan.system.only_present else "all classes",
        "area": config.segments_mlr.area,
        "backbone": describe_backbone(config).name,
        "warnings": warnings_of(config),
        "test_on_train": plan.listing.split == config.train_split or tested_on_train(config),
        "notes": list(getattr(plan.listing, "notes", ())),
        "config": config.model_dump(mode="json"),
        "commit": git_commit(),
        "seconds": round(time.perf_counter() - started, 2),
    }
    path = config.output.absolute() / "reports" / name / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=1))
    tracker = Tracker(config)
    tags = {"dclip.stage": "segments_mlr"}
    label = f"segments_mlr {plan.listing.split}"
    with tracker.run(label, key=name, tags=tags, seconds=report["seconds"]) as tracked:
        settings = config.model_dump(include={"dataset", "backbone", "pretrained"})
        tracked.params({**settings, **{key: report[key] for key in ("images", "area", "features",
            "candidates", "checkpoint")}})  # fmt: skip
        tracked.metrics(
            {
                f"{report['split']}/map/weight_{w}": value
                for w, value in report["map"].items()
                if value is not None
            }
        )
        tracked.artifact(path)
    report["mlflow"] = {"uri": tracker.uri, "run_id": tracked.run_id}
    sys.stdout.write(f"{table(report)}\nreport: {path}\n")
    return report


def table(report: Report) -> str:
    """The report as a table for people."""
    titles = {"0": "CLIP", "1": "segments alone", "0.5": "CLIP + segments, w = 0.5 (proposed)"}
    lines = [f"{'':40}{'mAP, %':>8}"]
    for weight, value in report["map"].items():
        title = titles.get(weight, f"CLIP + segments, w = {weight}")
        lines.append(f"{title:40}{'-' if value is None else f'{100 * value:.1f}':>8}")
    lines.append(
        f"{report['dataset']} {report['split']}, {counted(report['images'], 'image')}, "
        f"{report['segments_per_image']:.1f} segments an image ({report['candidates']}, "
        f"from {report['area']:.1%} of its pixels)"
    )
    lines += remarks(report)
    return "\n".join(lines)


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    try:
        plan = plan_segments(config)
    except NoCheckpointError as missing:
        wanted = config.segments_mlr
        listing = open_dataset(config, wanted.split or config.test_split)
        count = min(len(listing), wanted.limit or len(listing))
        return f"{count} images of {listing.name} {listing.split}\nmissing: {missing}"
    done = sum(_read(plan, group) is not None for group in range(plan.num_groups))
    if done < plan.num_groups:
        require_images(plan.listing, plan.num_images)
    return (
        f"{plan.num_images} images of {plan.listing.name} {plan.listing.split} in "
        f"{plan.num_groups} groups of {plan.group_size}; {done} done, to {plan.folder}\n"
        f"segments by checkpoint {plan.system.checkpoint}, features {plan.system.kind}"
    )
