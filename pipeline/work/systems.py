"""The systems a segmentation compares, and how it looks at an image, from the settings."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.records.choice import NoCheckpointError, given_files, names_of, take_checkpoints
from pipeline.settings.config import Config
from pipeline.settings.training import compared
from pipeline.terminal.errors import StageError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from dclip.backbones import Backbone
    from dclip.data.segmentation import SegmentationListing
    from dclip.data.windows import View
    from dclip.methods.method import Task
    from dclip.segmentation import Rule, System
    from pipeline.features.plan import BackboneInfo
    from pipeline.records.origin import About

log = logging.getLogger(__name__)

# Kind of local features; of several the first one the backbone has. Plain CLIP is `value` of a ViT
# and `qk` of a ResNet, MaskCLIP the other way round.
_FROZEN: Mapping[str, tuple[str, ...]] = {
    "clip": ("qk", "value"),
    "maskclip": ("maskclip", "value"),
    "clip_vv": ("vv",),
    "clip_surgery": ("vv",),
    "sclip": ("sclip",),
    "clearclip": ("clearclip",),
    "naclip": ("naclip",),
}


@dataclass(frozen=True)
class SystemPlan:
    """One row of the comparison.

    Attributes:
        name: What it is called in reports and metrics.
        kind: Local features it looks at.
        checkpoint: File of its projectors; None for frozen CLIP.
        trained_kind: Local features the projectors were trained on.
        trained_classes: Classes they were trained on.
        only_present: Whether only the classes compete that the projectors find in the image.
    """

    name: str
    kind: str
    checkpoint: Path | None = None
    trained_kind: str | None = None
    trained_classes: tuple[str, ...] = ()
    only_present: bool = False


def plan_systems(config: Config, backbone: "BackboneInfo") -> list[SystemPlan]:
    """The rows of the comparison, in the order of the settings.

    Raises:
        UsageError: The backbone lacks the kind that projectors are to look at, nothing is left to
            compare, or two systems have one name.
        NoCheckpointError: None is given, and there is none.
        StageError: A checkpoint is missing, damaged, or of another backbone.
    """
    plans: list[SystemPlan] = []
    asked = config.segment.systems
    for name in dict.fromkeys(name.removesuffix("_present") for name in asked):
        if name == "projectors":
            for plan in _plan_projectors(config, backbone):
                if "projectors" in asked:
                    plans.append(plan)
                if "projectors_present" in asked:
                    own = replace(plan, name=f"{plan.name}_present", only_present=True)
                    plans.append(own)
            continue
        kind = next((kind for kind in _FROZEN[name] if kind in backbone.paths), None)
        if kind is None:
            log.info("%s has no %s and is left out of %s", backbone.name, _FROZEN[name][0], name)
        elif name == "maskclip" and kind == "value" and "qk" not in backbone.paths:
            log.info("%s has no features of MaskCLIP beside its own", backbone.name)
        else:
            plans.append(SystemPlan(name, kind))
    names = [plan.name for plan in plans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two systems are called {twice[0]!r}; leave out one of the checkpoints")
    if not plans:
        raise UsageError(f"{backbone.name} has none of the systems {config.segment.systems}")
    return plans


def _plan_projectors(config: Config, backbone: "BackboneInfo") -> list[SystemPlan]:
    """Plans of the checkpoints; several of one method are called by their files."""
    kind = config.segment.kind
    if kind not in backbone.paths:
        raise UsageError(
            f"backbone {backbone.name} has no features of kind {kind!r}; it has "
            + ", ".join(backbone.paths)
        )
    try:
        files = given_files(config.segment.checkpoint) or take_checkpoints(config, compared(config))
    except NoCheckpointError as error:
        raise NoCheckpointError(f"{error}, or only frozen --segment.systems") from None
    origins = {path: read_origin(path, backbone) for path in files}
    names = names_of({path: about.name for path, (about, _) in origins.items()}, _FROZEN)
    return [
        SystemPlan(names[path], kind, path, trained_kind, tuple(about.class_names))
        for path, (about, trained_kind) in origins.items()
    ]


def read_origin(path: Path, backbone: "BackboneInfo") -> "tuple[About, str]":
    """Origin of a checkpoint, and the kind of the backbone's features that it was trained on.

    Raises:
        StageError: It is missing, damaged, or of another backbone.
    """
    from dclip.store.shards import digest
    from pipeline.records.checkpoints import load_checkpoint

    about = load_checkpoint(path)[1]  # whole, so that no worker is the first to find damage
    spaces = {digest(backbone.space(kind)): kind for kind in backbone.paths}
    if about.feature_space not in spaces:
        raise StageError(
            f"checkpoint {path} was trained on features of {about.made_on} "
            f"({about.feature_space[:12]}), not of {backbone.name} at {backbone.resolution} "
            "px; give the backbone, weights and resolution it was trained with"
        )
    return about, spaces[about.feature_space]


def encode_texts(
    backbone: "Backbone", phrasings: Sequence[Sequence[str]], templates: Sequence[str]
) -> "Task":
    """What the systems of a comparison are told of the classes.

    Raises:
        ValueError: Classes without a name of their own, or a template without its ``{}``.
    """
    from dclip.methods.method import Task

    return replace(Task.of(backbone, phrasings, templates=templates), backbone=None)


def build_systems(plans: Sequence[SystemPlan], task: "Task", *, device: str) -> "dict[str, System]":
    """The systems by name, with their texts and methods on the device.

    Raises:
        StageError: A checkpoint is missing or damaged, or of a method that does not score the
            locations of these classes.
    """
    from dclip.segmentation import System
    from pipeline.records.checkpoints import load_checkpoint

    own = task.to(device)
    systems = {}
    for plan in plans:
        if plan.checkpoint is None:
            systems[plan.name] = System(plan.kind, own.texts, surgery=plan.name == "clip_surgery")
            continue
        try:
            method = load_checkpoint(plan.checkpoint)[0].for_classes(own).to(device)
            systems[plan.name] = System(
                plan.kind,
                own.texts,
                method,
                presence_kind=plan.trained_kind if plan.only_present else None,
            )
        except ValueError as error:
            raise StageError(f"checkpoint {plan.checkpoint}: {error}") from None
    return systems


def scored_classes(config: Config, listing: "SegmentationListing") -> range:
    """Which of a listing's classes are scored by their texts, by the rule for background.

    Raises:
        UsageError: Background is asked for and is no class of the data set.
    """
    from dclip.data.segmentation import label_names

    total, named = len(listing.class_names), len(label_names(listing.class_names))
    rule = config.segment.background
    if rule != "none" and named == total:
        raise UsageError(
            f"--segment.background {rule}: background is no class of {listing.name} with these "
            "options; use none"
        )
    return range(0 if rule == "class" else total - named, total)


def rule_of(config: Config) -> "Rule":
    """How scores become classes."""
    from dclip.segmentation import Rule

    wanted = config.segment
    return Rule(
        normalisation=wanted.normalisation,
        logit_scale=wanted.logit_scale,
        background=wanted.threshold if wanted.background == "threshold" else None,
    )


def view_settings(config: Config, backbone: "BackboneInfo") -> dict[str, int]:
    """``resolution`` of one square, or ``window``, ``stride`` and ``short_side``.

    Raises:
        UsageError: The numbers do not fit one another or the backbone.
    """
    wanted = config.segment
    if wanted.window is None:
        if wanted.stride is not None or wanted.short_side is not None:
            raise UsageError("--segment.stride and --segment.short-side need --segment.window")
        return {"resolution": wanted.image_resolution or backbone.resolution}
    if wanted.image_resolution is not None:
        raise UsageError(
            "--segment.image-resolution is of one square, --segment.window of many; give one"
        )
    short_side = wanted.short_side or backbone.resolution
    stride = wanted.stride or max(1, wanted.window // 2)
    if not stride <= wanted.window <= short_side:
        raise UsageError(
            "sliding windows need stride <= window <= short side, got stride "
            f"{stride}, window {wanted.window}, short side {short_side}"
        )
    return {"window": wanted.window, "stride": stride, "short_side": short_side}


def view_of(image: "Image.Image", settings: Mapping[str, int]) -> "View":
    """An image as `view_settings` say."""
    from dclip.data.windows import sliding_view, whole_view

    if "window" in settings:
        return sliding_view(
            image,
            short_side=settings["short_side"],
            window=settings["window"],
            stride=settings["stride"],
        )
    return whole_view(image, settings["resolution"])
