"""The systems that score locations: frozen CLIP and checkpoints, ready to look at images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dclip.backbones import Backbone
from dclip.checkpoints.origin import CheckpointError
from dclip.data.crops import to_stride
from dclip.data.preparation import Interpolation
from dclip.data.windows import View, sliding_view, whole_view
from dclip.methods.method import Method, Task
from dclip.methods.registry import find_method
from dclip.methods.settings import MethodSettings
from dclip.segmentation import ImageSystem, System
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
) -> dict[str, System | ImageSystem]:
    """The systems by name, with their texts and methods on the device.

    Args:
        plans: What they are.
        task: Classes that are looked for.
        backbone: Encodes the texts of methods that learn prompts, of classes new to them.
        device: ``"cpu"`` or ``"cuda"``; the backbone is there.

    Raises:
        StageError: A checkpoint is missing or damaged, or of a method that does not score the
            locations of these classes; or a method without one cannot be asked of them.
    """
    own = task.to(device)
    asked = replace(own, backbone=backbone)
    methods: dict[Path, Method[Any]] = {}
    untrained: dict[MethodSettings, Method[Any]] = {}
    systems: dict[str, System | ImageSystem] = {}
    for plan in plans:
        if plan.method is not None:
            try:
                if plan.method not in untrained:
                    method = find_method(plan.method.name)(plan.method, asked)
                    untrained[plan.method] = method.eval()
            except ValueError as error:
                raise StageError(f"{plan.name}: {error}") from None
            systems[plan.name] = ImageSystem(untrained[plan.method], plan.only_present)
            continue
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
        except CheckpointError:
            raise  # which names the file itself
        except ValueError as error:
            raise StageError(f"checkpoint {plan.checkpoint}: {error}") from None
    return systems


def view_of(
    image: Image.Image,
    settings: Mapping[str, int],
    *,
    interpolation: Interpolation,
    native: int | None = None,
) -> View:
    """An image as the plan of a segmentation says: one square of all of it, or windows.

    Args:
        image: RGB.
        settings: Of the view.
        interpolation: Of the backbone.
        native: Stride of the backbone, where a system looks at the whole image at its own size.
    """
    if "window" in settings:
        view = sliding_view(
            image,
            short_side=settings["short_side"],
            window=settings["window"],
            stride=settings["stride"],
            interpolation=interpolation,
        )
    else:
        view = whole_view(image, settings["resolution"], interpolation)
    if native is None:
        return view
    return view._replace(whole=np.array(to_stride(image, native))[None])
