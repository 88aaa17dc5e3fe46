"""A trained model together with what made it, in one safetensors file."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dclip.checkpoints import files
from dclip.checkpoints.origin import About
from dclip.fitting.batches import Batch
from dclip.fitting.pack import Pack
from dclip.methods.method import Method
from dclip.prompts import ClassTexts
from dclip.store.paths import atomic_write
from dclip.store.shards import Manifest
from dclip.words import told
from pipeline.features.opened import frozen_clip
from pipeline.features.plan import is_one_space, space_of
from pipeline.terminal.errors import StageError

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


def load_checkpoint(path: Path) -> tuple[Method[Any], About]:
    """As :func:`dclip.checkpoints.files.load_checkpoint`; the last frozen CLIPs are kept open."""
    return files.load_checkpoint(path, open_clip=lambda clip: frozen_clip(clip, "cpu"))


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
