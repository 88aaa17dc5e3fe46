"""Checkpoints and images to a report: classes of pixels against true masks, without mask training.

Frozen CLIP in several forms and every checkpoint segment the same images by the same rule. Ray
actors work through groups of images and leave a small file of counts for each; the report is their
sum. So a run that was stopped goes on with the groups that are missing.
"""

import csv
import io
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dclip.words import counted
from pipeline.cluster.groups import Groups, read_arrays
from pipeline.cluster.makers import Maker, every_group
from pipeline.features.plan import describe_backbone, tested_on_train, warnings_of
from pipeline.features.preflight import TEMPLATES, require_fit_names, require_images
from pipeline.pictures.looks import heading_of, title_of
from pipeline.records.choice import NoCheckpointError
from pipeline.settings.config import Config, SegmentConfig
from pipeline.terminal.cli import Report, remarks
from pipeline.terminal.pages import page
from pipeline.work.systems import (
    SystemPlan,
    build_systems,
    encode_texts,
    plan_systems,
    rule_of,
    scored_classes,
    view_of,
    view_settings,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dclip.data.segmentation import SegmentationListing
    from dclip.data.windows import View
    from dclip.methods.method import Task

log = logging.getLogger(__name__)


_FORMAT = 1
_WORST = 10  # confusions that a report names


@dataclass(frozen=True)
class SegmentPlan(Groups):
    """What is segmented; the groups' files hold counts.

    Attributes:
        listing: Images and masks.
        scored: Which classes are scored by their texts.
        background: Position of background among the classes; None where it is none.
        view: How images go through the backbone.
        systems: What is compared.
    """

    listing: "SegmentationListing"
    scored: range
    background: int | None
    view: dict[str, int]
    systems: list[SystemPlan]

    @property
    def has_many_classes(self) -> bool:
        """Whether a matrix of all classes for each group and system would be large."""
        from dclip.data.segmentation import IGNORE_INDEX

        return self.listing.ignore_index != IGNORE_INDEX


def plan_segment(config: Config) -> SegmentPlan:
    """What the settings ask for.

    Raises:
        UsageError: A wrong setting, data set, split or backbone.
        StageError: A checkpoint is missing, damaged, or of another backbone.
        ValueError: What is on disk cannot be used.
    """
    from dclip.data.segmentation import BACKGROUND
    from dclip.store.shards import digest, file_digest

    wanted = config.segment
    split = wanted.split or config.test_split
    listing = _open_listing(config)
    backbone = describe_backbone(config)
    scored = scored_classes(config, listing)
    view = view_settings(config, backbone)
    systems = plan_systems(config, backbone)
    num_images = min(len(listing), wanted.limit or len(listing))
    identity = {
        "format": _FORMAT,
        "listing": listing.identity(),
        "num_images": num_images,
        "group_size": wanted.group_size,
        "phrasings": [list(listing.phrasings[position]) for position in scored],
        "templates": list(wanted.templates),
        "rule": _rule(config),
        "view": view,
        "systems": [
            {
                "name": plan.name,
                "features": backbone.space(plan.kind),
                "only_present": plan.only_present and plan.trained_kind,
                "weights": plan.checkpoint and file_digest(plan.checkpoint),
            }
            for plan in systems
        ],
    }
    name = f"segment-{config.dataset_slug}-{split}-{digest(identity)[:12]}"
    folder = config.output.absolute() / "segment" / name
    return SegmentPlan(
        name=name,
        folder=folder,
        listing=listing,
        scored=scored,
        background=0 if listing.class_names[0] == BACKGROUND else None,
        view=view,
        systems=systems,
        num_images=num_images,
        group_size=wanted.group_size,
    )


def _rule(config: Config) -> dict[str, Any]:
    """Settings that turn scores into classes; those that do nothing here as if left out."""
    keys = {"normalisation", "background", "threshold", "logit_scale", "precision"}
    rule = config.segment.model_dump(include=keys)
    if config.segment.background != "threshold":
        fields = SegmentConfig.model_fields
        rule |= {key: fields[key].default for key in ("threshold", "logit_scale")}
    return rule


def report_name(config: Config, plan: SegmentPlan) -> str:
    """Name of the report: that of its counts, and a hash of what it makes of them if not usual."""
    from dclip.store.shards import digest

    neighbours = config.segment.neighbours
    if neighbours == SegmentConfig.model_fields["neighbours"].default:
        return plan.name
    head, _, own = plan.name.rpartition("-")
    return f"{head}-{digest({'counts': own, 'neighbours': neighbours})[:12]}"


def _open_listing(config: Config) -> "SegmentationListing":
    from dclip.data.coco_masks import PaintedListing
    from pipeline.features.listings import is_own, open_segmentation, options_of
    from pipeline.features.plan import open_dataset, tested_on_train

    split = config.segment.split or config.test_split
    if split == config.test_split:
        tested_on_train(config)
    options = options_of(config.dataset, config.images, config.options)
    listing = open_segmentation(config.dataset, config.root, split, options)
    require_fit_names(
        [name for names in listing.phrasings for name in names],
        of=f"{config.dataset} {split}",
        backbone=config.backbone,
        templates=(*TEMPLATES, *config.segment.templates),
    )
    if isinstance(listing, PaintedListing) and is_own(config.dataset):
        # the images that are trained on or scored: a part of them, or those with an object
        labelled = open_dataset(config, split)
        listing = listing.only([labelled.key(row) for row in range(len(labelled))])
    return listing


# ---------------------------------------------------------------------------------------------
# Counts of a group
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What was counted on some images, for each system.

    Attributes:
        confusion: Pixels by true and predicted class, summed over the images: a matrix, or, where
            that would be large, a row for each of its cells that is not 0: place, and pixels.
        per_image: ``miou_paper`` and ``miou_paper_positive`` of every image.
    """

    confusion: "dict[str, np.ndarray]"
    per_image: "dict[str, np.ndarray]"


def read_counts(plan: SegmentPlan, group: int) -> Counts | None:
    """The counts of a group; None if they are not there or cannot be used."""
    arrays = read_arrays(plan.path(group)) or {}
    classes, images = len(plan.listing.class_names), len(plan.rows(group))
    found = Counts({}, {})
    for system in plan.systems:
        confusion = arrays.get(f"confusion/{system.name}")
        per_image = arrays.get(f"per_image/{system.name}")
        if confusion is None or per_image is None:
            return None
        shape = (len(confusion), 2) if plan.has_many_classes else (classes, classes)
        if confusion.shape != shape or per_image.shape != (images, 2):
            return None
        found.confusion[system.name], found.per_image[system.name] = confusion, per_image
    return found


def confusion_of(plan: SegmentPlan, groups: Sequence[Counts], system: str) -> "Tensor":
    """The confusion matrix of a system over all groups."""
    import numpy as np
    import torch

    classes = len(plan.listing.class_names)
    total = np.zeros((classes, classes), np.int64)
    for group in groups:
        counts = group.confusion[system]
        if plan.has_many_classes:
            np.add.at(total.reshape(-1), counts[:, 0], counts[:, 1])
        else:
            total += counts
    return torch.from_numpy(total)


class Segmenter(Maker["tuple[View, np.ndarray]"]):
    """A backbone with all systems of a plan, and threads that read ahead.

    Args:
        config: Settings.
        plan: What is segmented.
        texts: What the systems are told of the classes.
        device: ``"cpu"`` or ``"cuda"``.
        threads: That read and resize images.
    """

    def __init__(
        self, config: Config, plan: SegmentPlan, texts: "Task", device: str, threads: int
    ) -> None:
        super().__init__(config, config.segment, device, threads)
        self._plan = plan
        self._rule = rule_of(config)
        self._systems = build_systems(plan.systems, texts, device=device)

    def make(self, group: int) -> "dict[str, np.ndarray]":
        """The counts of a group's images against their masks, as arrays.

        Raises:
            ImageError: An image or mask cannot be used; the message names the file.
        """
        import numpy as np

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
    ) -> "Iterator[tuple[dict[str, Tensor], Tensor]]":
        """Label maps and true mask of each image; those of a group are counted."""
        import torch

        from dclip.segmentation import segment_images

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
            for found, (_, mask) in zip(maps, pairs, strict=True):
                yield found, torch.from_numpy(mask).to(self._device)

    def read(self, row: int) -> "tuple[View, np.ndarray]":
        """An image in windows, and its mask."""
        sample = self._plan.listing.read(row)
        return view_of(sample.image, self._plan.view), sample.mask

    def positions(self, mask: "Tensor") -> "Tensor":
        """A label map with classes by their position among all; background is 0 where it is one."""
        # by threshold, background is position 0 already
        return mask + self._plan.scored.start if self._rule.background is None else mask

    def compare(self, mask: "Tensor", target: "Tensor") -> "tuple[Tensor, tuple[float, float]]":
        """Counts and the paper's measures of one image's label map.

        Of many classes only those that the image or the map shows are compared.
        """
        import torch

        from dclip.metrics import confusion_matrix, image_miou_paper

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


def _merged(one: "Tensor", other: "Tensor") -> "Tensor":
    """The sum of two counts that are given by their cells."""
    import torch

    both = torch.cat([one, other])
    cells, places = torch.unique(both[:, 0], return_inverse=True)
    pixels = torch.zeros_like(cells).index_add_(0, places, both[:, 1])
    return torch.stack([cells, pixels], dim=1)


# ---------------------------------------------------------------------------------------------
# All groups, and their sum
# ---------------------------------------------------------------------------------------------


def count_all(config: Config, plan: SegmentPlan) -> list[Counts]:
    """The counts of all groups, of which those that are missing are made.

    Raises:
        StageError: An image or mask cannot be used, or a worker failed; what was made is kept.
    """

    def arguments() -> Sequence[Any]:
        require_images(plan.listing, plan.num_images)
        return config, plan, scored_texts(config, plan)

    read = partial(read_counts, plan)
    return every_group(config, config.segment, "segment", plan, read, Segmenter, arguments)


def scored_texts(config: Config, plan: SegmentPlan) -> "Task":
    """What the systems are told of the classes."""
    from pipeline.features.opened import open_backbone

    phrasings = [plan.listing.phrasings[position] for position in plan.scored]
    return encode_texts(open_backbone(config), phrasings, config.segment.templates)


def measure(config: Config, plan: SegmentPlan, groups: Sequence[Counts]) -> dict[str, Any]:
    """Metrics of every system, by name: data-set measures, the paper's, by class, and confusions.

    Args:
        config: Settings.
        plan: What was segmented.
        groups: Counts of all groups.
    """
    import numpy as np

    from dclip.metrics import Leakage, class_iou, confusion_pairs, cosine_matrix, leakage, miou
    from dclip.metrics import pixel_accuracy as accuracy
    from dclip.prompts import encode_class_texts
    from pipeline.features.opened import open_backbone

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
            "pixel_accuracy": accuracy(counted),
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


_SHOWN = {
    "miou": "miou",
    "miou_paper": "miou_paper",
    "miou_paper_positive": "..._positive",
    "pixel_accuracy": "pixel_acc",
    "leakage_harmonic_mean": "leakage_hm",
}


_LEGEND = (
    "percent. miou: by class over the whole data set, the field's. miou_paper, ..._positive: for",
    "each image over classes predicted there, or of IoU > 0, background not counted, then over",
    "images: the DCLIP paper's scripts. miou and miou_paper cannot be compared.",
)


def table(report: Report) -> str:
    """The report as a table for people, in percent, and what the columns mean."""
    width = max(28, *(len(title_of(name)) + 2 for name in report["systems"]))
    lines = [f"{'':{width}}" + "".join(f"{title:>14}" for title in _SHOWN.values())]
    for name, row in report["systems"].items():
        cells = [row[column] for column in _SHOWN]
        lines.append(
            f"{title_of(name):{width}}"
            + "".join(f"{'-' if cell is None else f'{100 * cell:.1f}':>14}" for cell in cells)
        )
    how = report["protocol"]
    lines += [
        f"{report['dataset']} {report['split']}, {counted(report['images'], 'image')}, "
        f"{counted(report['classes_scored'], 'class', 'classes')}; {how['view']}; scores "
        f"{how['scores']};",
        f"background: {how['background']}",
        *_LEGEND,
        f"(all explained in {page('method')}, Metrics)",
        *remarks(report),
    ]
    return "\n".join(lines)


def protocol(config: Config, plan: SegmentPlan) -> dict[str, Any]:
    """In words, what decides the numbers of a report."""
    wanted, view = config.segment, plan.view
    background = {
        "none": "no pixel is given to it, its true pixels are not counted"
        if plan.background is not None
        else "no class of this data set",
        "threshold": f"where the largest softmax of {wanted.logit_scale:g} x scores is below "
        f"{wanted.threshold:g}",
        "class": "a class like the others, by its phrasings",
    }
    return {
        "view": f"one square of {view['resolution']} px"
        if "resolution" in view
        else f"windows of {view['window']} px every {view['stride']} px, short side "
        f"{view['short_side']} px",
        "scores": "min-max by class and image" if wanted.normalisation == "minmax" else "cosines",
        "background": background[wanted.background],
        "texts": "positive prompts, unit features averaged over templates; of projectors the "
        "projected ones, BatchNorm in evaluation mode, normalised after projection",
        "templates": list(wanted.templates),
        "phrasings": "the best of a class's at each location",
    }


def class_table(report: Report) -> str:
    """IoU of every class by every system, as CSV; empty where a class is nowhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *(f"iou/{name}" for name in report["systems"])])
    rows = [row["class_iou"] for row in report["systems"].values()]
    for name, *values in zip(report["class_names"], *rows, strict=True):
        writer.writerow([name, *("" if v is None else f"{v:.6f}" for v in values)])
    return text.getvalue()


def run(config: Config) -> Report:
    """Segment, sum up, write report and IoU by class, record them in MLflow, print the table."""
    from dclip.store.paths import write_text
    from pipeline.records.provenance import git_commit
    from pipeline.records.tracking import Tracker

    started = time.perf_counter()
    plan = plan_segment(config)
    groups = count_all(config, plan)
    backbone = describe_backbone(config)
    measured = measure(config, plan, groups)
    report: Report = {
        "stage": "segment",
        "dataset": config.dataset,
        "split": plan.listing.split,
        "images": plan.num_images,
        "class_names": list(plan.listing.class_names),
        "classes_scored": len(plan.scored),
        "backbone": backbone.name,
        "protocol": protocol(config, plan),
        "systems": {
            system.name: {
                **measured[system.name],
                "features": f"{system.kind}: {backbone.paths[system.kind]}",
                "checkpoint": system.checkpoint and str(system.checkpoint),
                "candidates": "classes found present: probability of the prompt pair from 0.5, or "
                "the largest, over local features trained on"
                if system.only_present
                else "all classes",
                "trained_on": system.trained_kind,
                "trained_classes": list(system.trained_classes),
            }
            for system in plan.systems
        },
        "warnings": warnings_of(config),
        "test_on_train": plan.listing.split == config.train_split or tested_on_train(config),
        "notes": list(getattr(plan.listing, "notes", ())),
        "config": config.model_dump(mode="json"),
        "commit": git_commit(),
    }
    report["seconds"] = round(time.perf_counter() - started, 2)
    name = report_name(config, plan)
    folder = config.output.absolute() / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(config, plan, groups, report, folder)
    report["figures"] = [str(path) for path in pictures]
    write_text(folder / "report.json", json.dumps(report, indent=1))
    write_text(folder / "classes.csv", class_table(report))
    tracker = Tracker(config)
    tags = {"dclip.stage": "segment"}
    label = f"segment {plan.listing.split}"
    with tracker.run(label, key=name, tags=tags, seconds=report["seconds"]) as tracked:
        tracked.params(
            {
                **config.model_dump(include={"dataset", "backbone", "pretrained"}),
                "split": plan.listing.split,
                "images": plan.num_images,
                **report["protocol"],
            }
        )
        tracked.metrics(metrics(report))
        for file in ("report.json", "classes.csv"):
            tracked.artifact(folder / file)
        for picture in pictures:
            tracked.artifact(picture, "figures")
    report["mlflow"] = {"uri": tracker.uri, "run_id": tracked.run_id}
    sys.stdout.write(f"{table(report)}\nreport, classes and pictures: {folder}\n")
    return report


def draw(
    config: Config, plan: SegmentPlan, groups: Sequence[Counts], report: Report, folder: Path
) -> list[Path]:
    """Pictures of some images with their masks, of the worst, and of several checkpoints.

    ``masks.png`` has images spread evenly over the split, ``failures.png`` those of the lowest
    ``miou_paper`` by the best system, ``checkpoints.png`` is drawn of three checkpoints or more.
    """
    import numpy as np

    from dclip.store.paths import atomic_write
    from pipeline.pictures import mask_figures
    from pipeline.pictures.canvas import heading, more, save

    shown = _shown(plan, report)
    judge = max(shown, key=lambda name: _miou(report, name))
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
            for row, (found, target) in zip(rows, segmenter.segment(rows), strict=True):
                own = [segmenter.positions(found[system]) for system in shown]
                notes = [
                    f"IoU {100 * segmenter.compare(found[system], target)[1][0]:.0f}%"
                    for system in shown
                ]
                masks = [target.numpy(), *(mask.numpy() for mask in own)]
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
    compared = checkpoint_rows(plan, report)
    if len(compared) > 2:
        save(mask_figures.checkpoint_tradeoff(compared, subject), folder / "checkpoints.png")
        with (
            atomic_write(folder / "checkpoints.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=list(compared[0]))
            writer.writeheader()
            writer.writerows(compared)
        paths += [folder / "checkpoints.png", folder / "checkpoints.csv"]
    return paths


def _shown(plan: SegmentPlan, report: Report) -> list[str]:
    """Systems that are drawn: CLIP-VV, or the first, and the best two others."""
    names = [system.name for system in plan.systems]
    first = "clip_vv" if "clip_vv" in names else names[0]
    others = [name for name in names if name != first]
    best = sorted(others, key=lambda name: -_miou(report, name))[:2]
    return [first, *[name for name in others if name in best]]


def _miou(report: Report, system: str) -> float:
    """Its mIoU; below all others where it has none."""
    value = report["systems"][system]["miou"]
    return -1.0 if value is None or value != value else float(value)


def checkpoint_rows(plan: SegmentPlan, report: Report) -> list[dict[str, Any]]:
    """What each checkpoint was trained to, beside its mIoU; each checkpoint once."""
    from pipeline.records.origin import read_about

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
            "miou": report["systems"][system.name]["miou"],
        }
    return list(rows.values())


def metrics(report: Report) -> dict[str, float]:
    """What MLflow shows of a report: val/miou/dclip, val/miou_paper/clip_vv, ..."""
    return {
        f"{report['split']}/{name}/{system}": value
        for system, row in report["systems"].items()
        for name, value in row.items()
        if isinstance(value, float)
    }


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    try:
        plan = plan_segment(config)
    except NoCheckpointError as missing:
        listing = _open_listing(config)
        count = min(len(listing), config.segment.limit or len(listing))
        return (
            f"{count} images of {listing.name} {listing.split}, "
            f"{len(scored_classes(config, listing))} classes\nmissing: {missing}"
        )
    done = sum(read_counts(plan, group) is not None for group in range(plan.num_groups))
    if done < plan.num_groups:
        require_images(plan.listing, plan.num_images)
    how = protocol(config, plan)
    lines = [
        f"{plan.num_images} images of {plan.listing.name} {plan.listing.split}, "
        f"{len(plan.scored)} classes, in {plan.num_groups} groups of {plan.group_size}; {done} "
        f"groups done, {plan.num_groups - done} to do, to {plan.folder}",
        f"{how['view']}; scores {how['scores']}; background: {how['background']}",
    ]
    for system in plan.systems:
        source = f", checkpoint {system.checkpoint}" if system.checkpoint else ""
        present = ", classes found present" if system.only_present else ""
        lines.append(f"{system.name}: features {system.kind}{present}{source}")
    return "\n".join(lines)
