"""A trained model together with what made it, in one safetensors file."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dclip.backbones import Backbone
from dclip.fitting.batches import Batch
from dclip.fitting.pack import Pack
from dclip.methods.method import Method, Task, initial
from dclip.methods.registry import find_method
from dclip.prompts import ClassTexts
from dclip.store.paths import atomic_write
from dclip.store.shards import Manifest
from pipeline.features.opened import frozen_clip
from pipeline.features.plan import is_one_space, space_of
from pipeline.records.origin import About, bad_checkpoint, read_about
from pipeline.terminal.errors import StageError, told

_PAIRS, _CLASSES, _WEIGHTS = "text_features.pairs", "text_features.classes", "weights."


def write_state(path: Path, pack: Pack) -> None:
    """Write all that a training needs to go on from where it stands."""
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(pack.state_tensors(), temporary)


def read_state(path: Path, pack: Pack) -> None:
    """Restore in place what :func:`write_state` wrote of an equal training.

    Raises:
        StageError: The file is damaged, or of another training.
    """
    try:
        pack.load_state_tensors(safetensors.torch.load_file(path))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StageError(
            f"cannot go on from {path}: {told(error)}; delete it to train from the start"
        ) from None


def read_progress(path: Path) -> tuple[int, int]:
    """Epochs, and steps of the one begun, that a kept state has done; none where there is none."""
    try:
        with safetensors.safe_open(path, "pt") as state:
            return int(state.get_tensor("epoch")), int(state.get_tensor("step"))
    except (OSError, safetensors.SafetensorError):
        return 0, 0


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


def load_checkpoint(path: Path) -> tuple[Method[Any], About]:
    """A trained method in evaluation mode, on the CPU, and its origin.

    Raises:
        StageError: The file is missing, damaged, or of another format.
    """
    about = read_about(path)
    kind, names = find_method(about.method), about.class_names
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise bad_checkpoint(path, told(error)) from None
    if not any(name.startswith(_WEIGHTS) for name in tensors):
        tensors = _as_now(tensors)
    backbone = _backbone_of(path, about)
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


def _backbone_of(path: Path, about: About) -> Backbone | None:
    """The frozen CLIP that a method needs to see images; None for one that does not."""
    if not about.settings.sees_images():
        return None
    if about.encoder is None:
        raise bad_checkpoint(path, "it does not say of which CLIP it is")
    return frozen_clip(about.encoder.clip, "cpu")


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
        StageError: One is missing, too many, of another shape or type, or not finite.
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


class Scorer(nn.Module):
    """A trained method as one function: local features to the score of each of its classes.

    Args:
        method: Trained, fed local features alone.
    """

    def __init__(self, method: Method[Any]) -> None:
        super().__init__()
        self.method = method
        self.pairs: Tensor
        self.texts: Tensor
        # buffers, so that they move with the weights
        self.register_buffer("pairs", method.task.pairs)
        self.register_buffer("texts", method.task.texts.features)

    def forward(self, local: Float32[Tensor, "images locations dim"]) -> Tensor:
        """Score of every class in every image."""
        task = self.method.task
        texts = ClassTexts(self.texts, task.texts.classes)
        method = self.method.with_task(replace(task, pairs=self.pairs, texts=texts))
        return method.scores(Batch(local, torch.empty(0, 0, dtype=torch.int8)))


def export_refusal(method: Method[Any]) -> str:
    """Why a method cannot become a graph that scores without this package; empty if it can.

    Args:
        method: With any weights.
    """
    if method.settings.scoring_feeds() != {"local"}:
        fed = " and ".join(sorted(method.settings.scoring_feeds()))
        return f"{method.settings.name} is fed {fed}, a registered model local features alone"
    example = torch.zeros(2, 3, method.task.dim)
    free = [{0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}]
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.export.export(Scorer(method).eval(), (example,), dynamic_shapes=free)
    except Exception as error:  # of any kind: it traces what a user wrote
        return f"{method.settings.name} cannot be traced: {told(error)}"
    return ""


def check_features(path: Path, about: About, manifest: Manifest) -> None:
    """Refuse features that the checkpoint was not made for.

    Raises:
        StageError: They come from another backbone, resolution or preprocessing, or the classes
            differ.
    """
    if not is_one_space((about.feature_space, about.formerly), space_of(manifest)):
        raise StageError(
            f"checkpoint {path} was trained on features of {about.made_on} "
            f"({about.feature_space[:12]}), these are of {manifest.spec.get('backbone_name')} "
            f"at {manifest.spec.get('resolution', 'unknown')} px, kind "
            f"{manifest.spec.get('kind', 'unknown')} ({manifest.feature_space[:12]}); use the "
            "same backbone, weights and resolution"
        )
    if not about.class_names:
        raise StageError(
            f"checkpoint {path} was trained on captions and knows no classes; score it by python "
            "-m pipeline.retrieve"
        )
    if about.class_names != manifest.class_names:
        raise StageError(
            f"checkpoint {path} knows {len(about.class_names)} classes ({about.class_names[0]}, "
            f"...), the features are labelled with {len(manifest.class_names)} others "
            f"({manifest.class_names[0]}, ...); evaluate on a split with the same classes"
        )
