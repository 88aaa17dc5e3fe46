"""A trained model together with what made it, in one safetensors file."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from dclip.model import DCLIP
from dclip.paths import atomic_write
from dclip.recipe import Recipe
from dclip.shards import Manifest
from dclip.training import build_model, load_state_tensors, state_tensors
from pipeline.errors import StageError

FORMAT = 1
_STATE = "state.safetensors"
_TEXT = "text_features.pairs"


class About(BaseModel):
    """Origin of a checkpoint; ``feature_space`` says which features it understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    method: str
    feature_space: str
    backbone_name: str
    embed_dim: int = Field(ge=1)
    class_names: list[str]
    recipe: Recipe
    seed: int
    features: str
    history: list[dict[str, float]]
    commit: str | None


def write_state(directory: Path, model: nn.Module, optimizer: Optimizer, epoch: int) -> None:
    """Write what a training needs to go on after ``epoch``: weights and optimizer state."""
    tensors = state_tensors(model, optimizer)
    tensors["epoch"] = torch.tensor(epoch)
    safetensors.torch.save_file(tensors, directory / _STATE)


def read_state(directory: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Restore in place what :func:`write_state` wrote; number of epochs done."""
    tensors = safetensors.torch.load_file(directory / _STATE)
    epoch = int(tensors.pop("epoch"))
    load_state_tensors(model, optimizer, tensors)
    return epoch


def write_checkpoint(
    path: Path, model: DCLIP, texts: Float32[Tensor, "pairs dim"], about: About
) -> None:
    """Write projectors, the text features they were trained with, and their origin."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors[_TEXT] = texts
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            temporary,
            metadata={"dclip": about.model_dump_json()},
        )


def read_about(path: Path) -> About:
    """Origin of a checkpoint, without its tensors.

    Raises:
        StageError: The file is missing or is no checkpoint of this format.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
        about = About.model_validate_json(metadata["dclip"])
    except FileNotFoundError:
        raise StageError(
            f"no checkpoint at {path}; run python -m pipeline.train with the same settings first"
        ) from None
    except (OSError, KeyError, ValidationError, json.JSONDecodeError) as error:
        raise _bad(path, error) from None
    except safetensors.SafetensorError as error:
        raise _bad(path, error) from None
    if about.format != FORMAT:
        raise StageError(f"{path} has format {about.format}, this version reads {FORMAT}")
    return about


def load_checkpoint(path: Path) -> tuple[DCLIP, Float32[Tensor, "pairs dim"], About]:
    """Projectors in evaluation mode, their text features, and their origin.

    Raises:
        StageError: The file is missing, damaged, or of another format.
    """
    about = read_about(path)
    try:
        tensors = safetensors.torch.load_file(path)
        texts = tensors.pop(_TEXT)
        model = build_model(about.recipe, about.embed_dim, seed=about.seed)
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items()}, strict=True
        )
    except (safetensors.SafetensorError, KeyError, RuntimeError) as error:
        raise _bad(path, error) from None
    return model.eval(), texts, about


def check_features(path: Path, about: About, manifest: Manifest) -> None:
    """Refuse features that the checkpoint was not made for.

    Raises:
        StageError: They come from another backbone, resolution or preprocessing, or the classes
            differ.
    """
    if about.feature_space != manifest.feature_space:
        raise StageError(
            f"checkpoint {path} was trained on features of {about.backbone_name} "
            f"({about.feature_space[:12]}), these are of {manifest.spec.get('backbone_name')} "
            f"({manifest.feature_space[:12]}); use the same backbone, weights and resolution"
        )
    if about.class_names != manifest.class_names:
        raise StageError(
            f"checkpoint {path} knows {len(about.class_names)} classes ({about.class_names[0]}, "
            f"...), the features are labelled with {len(manifest.class_names)} others "
            f"({manifest.class_names[0]}, ...); evaluate on a split with the same classes"
        )


def _bad(path: Path, error: Exception) -> StageError:
    reason = " ".join(str(error).split())
    return StageError(f"{path} is not a checkpoint ({reason}); train again or give another file")
