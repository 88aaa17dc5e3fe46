"""A trained model together with what made it, in one safetensors file."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dclip.backbones import Backbone, load_backbone
from dclip.checkpoints.origin import About, bad_checkpoint, read_about
from dclip.clip_settings import ClipSettings
from dclip.methods.method import Method, Task, initial
from dclip.methods.registry import find_method
from dclip.store.paths import atomic_write
from dclip.words import told

_PAIRS, _CLASSES, _WEIGHTS = "text_features.pairs", "text_features.classes", "weights."


def write_checkpoint(path: Path, method: Method[Any], about: About) -> None:
    """Write a method's weights, the text features it was trained with, and their origin."""
    tensors = {f"{_WEIGHTS}{name}": value for name, value in method.state_dict().items()}
    tensors |= {_PAIRS: method.task.pairs, _CLASSES: method.task.texts.features}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            temporary,
            metadata=about.metadata(),
        )


def open_clip_of(clip: ClipSettings) -> Backbone:
    """A frozen CLIP, on the CPU."""
    return load_backbone(**clip._asdict())


def load_checkpoint(
    path: Path, *, open_clip: Callable[[ClipSettings], Backbone] = open_clip_of
) -> tuple[Method[Any], About]:
    """A trained method in evaluation mode, on the CPU, and its origin.

    Args:
        path: The file.
        open_clip: Opens the frozen CLIP, which methods need that see images.

    Raises:
        CheckpointError: The file is missing, damaged, or of another format.
    """
    about = read_about(path)
    kind, names = find_method(about.method), about.class_names
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise bad_checkpoint(path, told(error)) from None
    if not any(name.startswith(_WEIGHTS) for name in tensors):
        tensors = _as_now(tensors)
    backbone = _backbone_of(path, about, open_clip)
    try:
        # a width that is wrong takes no memory; where weights are made from CLIP's, these say it
        with torch.device("meta") if backbone is None else nullcontext():
            task = Task.placeholder(names, about.embed_dim, about.text_width)
            sizes = kind(about.settings, replace(task, backbone=backbone)).state_dict()
    except (RuntimeError, TypeError, ValueError):  # of numbers that are too large for torch
        raise bad_checkpoint(path, "no weights have the widths that it tells of") from None
    expected = {f"{_WEIGHTS}{name}": value for name, value in sizes.items()}
    expected |= {_PAIRS: task.pairs, _CLASSES: task.texts.features}
    grown = _as_grown(kind, tensors, expected)
    _require_alike(path, tensors, expected | grown)
    task = Task.of_features(names, tensors.pop(_PAIRS), tensors.pop(_CLASSES))
    task = replace(task, text_width=about.text_width, backbone=backbone)
    method = initial(kind, about.settings, task, seed=0, follow_task=False)
    for name in grown:
        setattr(method, name.removeprefix(_WEIGHTS), torch.empty_like(tensors[name]))
    weights = {name.removeprefix(_WEIGHTS): value for name, value in tensors.items()}
    method.load_state_dict(weights, strict=True)
    return method.eval(), about


def _backbone_of(
    path: Path, about: About, open_clip: Callable[[ClipSettings], Backbone]
) -> Backbone | None:
    """The frozen CLIP that a method needs to see images; None for one that does not."""
    if not about.settings.sees_images():
        return None
    if about.encoder is None:
        raise bad_checkpoint(path, "it does not say of which CLIP it is")
    return open_clip(about.encoder.clip)


def _as_now(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of format 2, which had projectors and prompt pairs, by the names of this one."""
    renamed = {
        name if name == _PAIRS else f"{_WEIGHTS}{name}": value for name, value in tensors.items()
    }
    if _PAIRS in renamed:
        renamed[_CLASSES] = renamed[_PAIRS][len(renamed[_PAIRS]) // 2 :].clone()
    return renamed


def _as_grown(
    kind: type[Method[Any]], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is expected of buffers that a fit gives rows: as many each as the first one has."""
    names = [f"{_WEIGHTS}{name}" for name in sorted(kind.grows)]
    rows = next((len(tensors[name]) for name in names if name in tensors and tensors[name].ndim), 0)
    return {name: expected[name].new_empty(rows, *expected[name].shape[1:]) for name in names}


def _require_alike(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are not those of the training that a checkpoint tells of.

    Raises:
        CheckpointError: One is missing, too many, of another shape or type, or not finite.
    """
    for name in sorted({*tensors, *expected}):
        if name not in tensors:
            raise bad_checkpoint(path, f"{name} is missing")
        if name not in expected:
            raise bad_checkpoint(path, f"it has {name}, which its method has not")
        own, wanted = (f"{list(t.shape)} {t.dtype}" for t in (tensors[name], expected[name]))
        if own != wanted:
            raise bad_checkpoint(path, f"{name} is {own}, its training makes {wanted}")
        if not tensors[name].isfinite().all():
            raise bad_checkpoint(path, f"{name} has values that are not finite")
