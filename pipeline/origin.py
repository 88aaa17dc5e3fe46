"""What a checkpoint says of its origin; reading it takes no torch."""

import json
from pathlib import Path
from typing import Any

import safetensors
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dclip.recipe import Recipe
from pipeline.errors import StageError, told

FORMAT = 2


class About(BaseModel):
    """Origin of a checkpoint; ``feature_space`` says which features it understands.

    ``epoch`` is the one its weights are of: the last, or the best on held-out images, as the
    recipe's ``selection`` says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    method: str
    feature_space: str
    backbone_name: str
    embed_dim: int = Field(ge=1)
    class_names: list[str]
    recipe: Recipe
    seed: int
    epoch: int = Field(ge=1)
    features: str
    history: list[dict[str, float]]
    commit: str | None


def read_about(path: Path) -> About:
    """Origin of a checkpoint, without its tensors.

    Raises:
        StageError: The file is missing or is no checkpoint of this format.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata: dict[str, Any] = file.metadata() or {}
        found = json.loads(metadata["dclip"])
        if found["format"] != FORMAT:
            raise StageError(
                f"{path} has format {found['format']}, this version reads {FORMAT}; delete it and "
                "train again"
            )
        about = About.model_validate(found)
    except FileNotFoundError:
        raise StageError(
            f"no checkpoint at {path}; run python -m pipeline.train with the same settings first"
        ) from None
    except (OSError, KeyError, TypeError, ValidationError, json.JSONDecodeError) as error:
        raise bad_checkpoint(path, error) from None
    except safetensors.SafetensorError as error:
        raise bad_checkpoint(path, error) from None
    return about


def bad_checkpoint(path: Path, error: Exception) -> StageError:
    """What is said of a file that is no checkpoint, and why."""
    return StageError(f"{path} is not a checkpoint ({told(error)}); delete it and train again")
