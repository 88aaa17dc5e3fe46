"""Images by several systems to counts against true masks, to measures, and to pictures."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dclip.backbones import preparation_of
from dclip.checkpoints.origin import read_about
from dclip.data.windows import View
from dclip.methods.method import Task
from dclip.metrics import (
    Leakage,
    class_iou,
    confusion_matrix,
    confusion_pairs,
    cosine_matrix,
    image_miou_paper,
    leakage,
    miou,
    pixel_accuracy,
)
from dclip.pictures import masks as mask_figures
from dclip.pictures.canvas import heading, more, save
from dclip.prompts import encode_class_texts
from dclip.segmentation import Rule, segment_images
from dclip.store.paths import atomic_write
from pipeline.cluster.makers import Maker, every_group
from pipeline.features.backbone import describe_backbone
from pipeline.features.opened import open_backbone
from pipeline.features.preflight import require_images
from pipeline.pictures.looks import heading_of
from pipeline.pictures.tradeoff import checkpoint_tradeoff
from pipeline.settings.config import Config
from pipeline.work.plans import Counts, SegmentPlan
from pipeline.work.systems import build_systems, encode_texts, view_of

_WORST = 10  # confusions that a report names

Measures = Mapping[str, Mapping[str, Any]]
"""Metrics of every system, by its name."""


def count_all(config: Config, plan: SegmentPlan) -> list[Counts]:
    """The counts of all groups, of which those that are missing are made.

    Raises:
        StageError: An image, mask or checkpoint cannot be used, or a worker failed; what was made
            is kept.
    """

    def arguments() -> Sequence[Any]:
        require_images(plan.listing, plan.num_images)
        texts = scored_texts(config, plan)
        # no worker is the first to find damage
        build_systems(plan.systems, texts, open_backbone(config), device="cpu")
        return config, plan, texts

    return every_group(config, config.segment, "segment", plan, plan.counts, Segmenter, arguments)


def scored_texts(config: Config, plan: SegmentPlan) -> Task:
    """What the systems are told of the classes."""
    phrasings = [plan.listing.phrasings[position] for position in plan.scored]
    return encode_texts(open_backbone(config), phrasings, config.segment.templates)


def rule_of(config: Config) -> Rule:
    """How scores become classes."""
    wanted = config.segment
    return Rule(
        normalisation=wanted.normalisation,
        logit_scale=wanted.logit_scale,
        background=wanted.threshold if wanted.background == "threshold" else None,
    )


def confusion_of(plan: SegmentPlan, groups: Sequence[Counts], system: str) -> Tensor:
    """The confusion matrix of a system over all groups."""
    classes = len(plan.listing.class_names)
    total = np.zeros((classes, classes), np.int64)
    for group in groups:
        counts = group.confusion[system]
        if plan.has_many_classes:
            np.add.at(total.reshape(-1), counts[:, 0], counts[:, 1])
        else:
            total += counts
    return torch.from_numpy(total)


class Segmenter(Maker[tuple[View, np.ndarray]]):
    """A backbone with all systems of a plan, and threads that read ahead.

    Args:
        config: Settings.
        plan: What is segmented.
        texts: What the systems are told of the classes.
        device: ``"cpu"`` or ``"cuda"``.
        threads: That read and resize images.
    """

    def __init__(
        self, config: Config, plan: SegmentPlan, texts: Task, device: str, threads: int
    ) -> None:
        super().__init__(config, config.segment, device, threads)
        self._plan = plan
        self._rule = rule_of(config)
        sees_images = any(system.method is not None for system in plan.systems)
        self._native = self._backbone.stride if sees_images else None
        self._interpolation = preparation_of(self._backbone).interpolation
        self._systems = build_systems(plan.systems, texts, self._backbone, device=device)

    def make(self, group: int) -> dict[str, np.ndarray]:
        """The counts of a group's images against their masks, as arrays.

        Raises:
            ImageError: An image or mask cannot be used; the message names the file.
        """
        confusion: dict[str, Any] = {}
        per_image: dict[str, list[tuple[float, float]]] = {s.name: [] for s in self._plan.systems}
        for masks, target in self.segment(self._plan.rows(group), group):
            for name, mask in masks.items():
                counted, paper = self.compare(mask, target)
                if self._plan.has_many_classes and name in confusion:
                    confusion[name] = _merged(confusion[name], counted)
                else:
                    confusion[name] = counted + confusion.get(name, 0)
                per_image[name].append(paper)
        return {f"confusion/{name}": counts.cpu().numpy() for name, counts in confusion.items()} | {
            f"per_image/{name}": np.array(rows, np.float64) for name, rows in per_image.items()
        }

    def segment(
        self, rows: Sequence[int], group: int | None = None
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Label maps and true mask of each image; those of a group are counted."""
        for pairs in self.batches(rows, group):
            maps = segment_images(
                self._backbone,
                [view for view, _ in pairs],
                self._systems,
                self._rule,
                batch_size=self._batch,
                precision=self._precision,
                device=self._device,
            )
            for own, (_, mask) in zip(maps, pairs, strict=True):
                yield own, torch.from_numpy(mask).to(self._device)

    def read(self, row: int) -> tuple[View, np.ndarray]:
        """An image in windows, and its mask."""
        sample = self._plan.listing.read(row)
        view = view_of(
            sample.image,
            self._plan.view,
            interpolation=self._interpolation,
            native=self._native,
        )
        return view, sample.mask

    def positions(self, mask: Tensor) -> Tensor:
        """A label map with classes by their position among all; background is 0 where it is one."""
        # by threshold, background is position 0 already
        return mask + self._plan.scored.start if self._rule.background is None else mask

    def compare(self, mask: Tensor, target: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Counts and the paper's measures of one image's label map.

        Of many classes only those that the image or the map shows are compared.
        """
        plan, ignored = self._plan, self._plan.listing.ignore_index
        classes, first = len(plan.listing.class_names), plan.scored.start
        mask = self.positions(mask)
        if self._rule.background is None and first:
            target = torch.where(target == 0, ignored, target)
        if not plan.has_many_classes:
            matrix = confusion_matrix(mask, target, num_classes=classes, ignore_index=ignored)
            predicted = torch.bincount(mask.flatten().long(), minlength=classes) > 0
            return matrix, image_miou_paper(matrix, predicted, background=plan.background)
        true, mask = target.long(), mask.long()
        shown = torch.unique(torch.cat([mask.flatten(), true[true != ignored]]))  # ascending
        own = shown.new_full((ignored + 1,), len(shown))
        own[shown] = torch.arange(len(shown), device=shown.device)
        matrix = confusion_matrix(
            own[mask], own[true], num_classes=len(shown), ignore_index=len(shown)
        )
        predicted = torch.bincount(own[mask].flatten(), minlength=len(shown)) > 0
        has_background = plan.background is not None and int(shown[0]) == plan.background
        paper = image_miou_paper(matrix, predicted, background=0 if has_background else None)
        rows, columns = matrix.nonzero(as_tuple=True)
        cells = shown[rows] * classes + shown[columns]
        return torch.stack([cells, matrix[rows, columns]], dim=1), paper


def _merged(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two counts that are given by their cells."""
    both = torch.cat([one, other])
    cells, own = torch.unique(both[:, 0], return_inverse=True)
    pixels = torch.zeros_like(cells).index_add_(0, own, both[:, 1])
    return torch.stack([cells, pixels], dim=1)


def measure(config: Config, plan: SegmentPlan, groups: Sequence[Counts]) -> dict[str, Any]:
    """Metrics of every system, by name: data-set measures, the paper's, by class, and confusions.

    Args:
        config: Settings.
        plan: What was segmented.
        groups: Counts of all groups.
    """
    names = plan.listing.class_names
    # background is no class where it is neither true nor predicted
    first = plan.scored.start if config.segment.background == "none" else 0
    display = encode_class_texts(open_backbone(config), [(name,) for name in names[first:]])
    similarity = cosine_matrix(display.features.float())
    result = {}
    for system in plan.systems:
        counted = confusion_of(plan, groups, system.name)
        paper = np.concatenate([group.per_image[system.name] for group in groups])
        positive = paper[:, 1][~np.isnan(paper[:, 1])]
        leaked = (  # needs another class to leak to
            leakage(counted[first:, first:], similarity, neighbours=config.segment.neighbours)
            if len(similarity) > 1
            else Leakage(math.nan, math.nan, math.nan)
        )
        values = {
            "miou": miou(counted),
            "pixel_accuracy": pixel_accuracy(counted),
            "miou_paper": float(paper[:, 0].mean()),
            "miou_paper_positive": float(positive.mean()) if len(positive) else 0.0,
            **{f"leakage_{name}": value for name, value in leaked._asdict().items()},
        }
        result[system.name] = {
            **{name: None if value != value else value for name, value in values.items()},
            "class_iou": [
                None if value != value else value for value in class_iou(counted).tolist()
            ],
            "confusions": [
                {
                    "true": names[pair.true],
                    "predicted": names[pair.predicted],
                    "share": pair.share,
                    "pixels": pair.pixels,
                }
                for pair in confusion_pairs(counted, largest=_WORST)
            ],
        }
    return result


def draw(
    config: Config, plan: SegmentPlan, groups: Sequence[Counts], measures: Measures, folder: Path
) -> list[Path]:
    """Pictures of some images with their masks, of the worst, and of several checkpoints.

    ``masks.png`` has images spread evenly over the split, ``failures.png`` those of the lowest
    ``miou_paper`` by the best system, ``checkpoints.png`` is drawn of three checkpoints or more.
    """
    shown = _shown(plan, measures)
    judge = max(shown, key=lambda name: _miou(measures, name))
    scores = np.concatenate([group.per_image[judge] for group in groups])[:, 0]
    count = min(config.segment.scenes, plan.num_images)
    even = [int(row) for row in np.linspace(0, plan.num_images - 1, count).round()]
    worst = [int(row) for row in np.argsort(scores, kind="stable")[:count]]
    truth = "truth" if config.segment.background != "none" else "truth; only its pixels count"
    titles = [truth, *map(heading_of, shown)]
    texts = scored_texts(config, plan)
    drawn_plan = replace(plan, systems=[s for s in plan.systems if s.name in shown])
    segmenter = Segmenter(config, drawn_plan, texts, "cpu", 1)
    background = 0 if plan.scored.start or config.segment.background != "none" else None
    subject = f"{plan.listing.name} {plan.listing.split}, {describe_backbone(config).name}"
    paths = []
    try:
        for name, rows, what in (
            ("masks.png", even, "images evenly spread"),
            ("failures.png", worst, f"lowest IoU by {heading_of(judge).replace(chr(10), ' ')}"),
        ):
            drawn = []
            for row, (maps, target) in zip(rows, segmenter.segment(rows), strict=True):
                notes = [
                    f"IoU {100 * segmenter.compare(maps[system], target)[1][0]:.0f}%"
                    for system in shown
                ]
                own = [segmenter.positions(maps[system]).numpy() for system in shown]
                masks = [target.numpy(), *own]
                image = plan.listing.read(row).image
                drawn.append(mask_figures.MaskRow(image, masks, [plan.listing.key(row), *notes]))
            systems = more(len(shown), len(plan.systems), "systems, CLIP and the best two")
            figure = mask_figures.comparison(
                drawn, titles, plan.listing.class_names, background,
                ignore=plan.listing.ignore_index, title=heading(subject, what, systems),
            )  # fmt: skip
            save(figure, folder / name)
            paths.append(folder / name)
    finally:
        segmenter.close()
    compared = checkpoint_rows(plan, measures)
    if len(compared) > 2:
        save(checkpoint_tradeoff(compared, subject), folder / "checkpoints.png")
        with (
            atomic_write(folder / "checkpoints.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=list(compared[0]))
            writer.writeheader()
            writer.writerows(compared)
        paths += [folder / "checkpoints.png", folder / "checkpoints.csv"]
    return paths


def _shown(plan: SegmentPlan, measures: Measures) -> list[str]:
    """Systems that are drawn: CLIP-VV, or the first, and the best two others."""
    names = [system.name for system in plan.systems]
    first = "clip_vv" if "clip_vv" in names else names[0]
    others = [name for name in names if name != first]
    best = sorted(others, key=lambda name: -_miou(measures, name))[:2]
    return [first, *[name for name in others if name in best]]


def _miou(measures: Measures, system: str) -> float:
    """Its mIoU; below all others where it has none."""
    value = measures[system]["miou"]
    return -1.0 if value is None or value != value else float(value)


def checkpoint_rows(plan: SegmentPlan, measures: Measures) -> list[dict[str, Any]]:
    """What each checkpoint was trained to, beside its mIoU; each checkpoint once."""
    rows: dict[Path, dict[str, Any]] = {}
    for system in plan.systems:
        if system.checkpoint is None or system.checkpoint in rows:
            continue
        about = read_about(system.checkpoint)
        last = about.history[about.epoch - 1] if about.history else {}
        rows[system.checkpoint] = {
            "name": system.name,
            "method": about.name,
            "seed": about.seed,
            **{key: getattr(about.settings, key) for key in sorted(about.settings.may_differ)},
            "val_map": last.get("val_map"),
            "inter_class_cosine": last.get("inter_class_cosine"),
            "miou": measures[system.name]["miou"],
        }
    return list(rows.values())
