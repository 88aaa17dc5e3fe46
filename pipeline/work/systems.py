"""The systems that score locations: frozen CLIP and checkpoints, ready to look at images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from dclip.backbones import Backbone
from dclip.data.windows import View, sliding_view, whole_view
from dclip.methods.method import Method, Task
from dclip.segmentation import System
from pipeline.records.checkpoints import load_checkpoint
from pipeline.terminal.errors import StageError
from pipeline.work.plans import SystemPlan


def encode_texts(
    backbone: Backbone, phrasings: Sequence[Sequence[str]], templates: Sequence[str]
) -> Task:
    """What the systems of a comparison are told of the classes.

    Raises:
        ValueError: Classes without a name of their own, or a template without its ``{}``.
    """
    return replace(Task.of(backbone, phrasings, templates=templates), backbone=None)


def build_systems(
    plans: Sequence[SystemPlan], task: Task, backbone: Backbone, *, device: str
) -> dict[str, System]:
    """The systems by name, with their texts and methods on the device.

    Args:
        plans: What they are.
        task: Classes that are looked for.
        backbone: Encodes the texts of methods that learn prompts, of classes new to them.
        device: ``"cpu"`` or ``"cuda"``; the backbone is there.

    Raises:
        StageError: A checkpoint is missing or damaged, or of a method that does not score the
            locations of these classes.
    """
    own = task.to(device)
    asked = replace(own, backbone=backbone)
    methods: dict[Path, Method[Any]] = {}
    systems = {}
    for plan in plans:
        if plan.checkpoint is None:
            systems[plan.name] = System(plan.kind, own.texts, surgery=plan.name == "clip_surgery")
            continue
        try:
            if plan.checkpoint not in methods:
                method = load_checkpoint(plan.checkpoint)[0]
                methods[plan.checkpoint] = method.to(device).for_classes(asked)
            systems[plan.name] = System(
                plan.kind,
                own.texts,
                methods[plan.checkpoint],
                presence_kind=plan.trained_kind if plan.only_present else None,
            )
        except ValueError as error:
            raise StageError(f"checkpoint {plan.checkpoint}: {error}") from None
    return systems


def view_of(image: Image.Image, settings: Mapping[str, int]) -> View:
    """An image as the plan of a segmentation says: one square of it, or windows."""
    if "window" in settings:
        return sliding_view(
            image,
            short_side=settings["short_side"],
            window=settings["window"],
            stride=settings["stride"],
        )
    return whole_view(image, settings["resolution"])
