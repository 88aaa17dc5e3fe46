"""What a checkpoint says of its origin; reading it takes no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import safetensors
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dclip.recipe import Recipe
from pipeline.config import Config
from pipeline.errors import StageError, told

FORMAT = 2


class Encoder(BaseModel):
    """The frozen CLIP behind a checkpoint, in the words of the settings.

    Attributes:
        backbone: Name it is opened by.
        pretrained: Tag or file of its weights; None for the usual ones.
        resolution: Side of its images in pixels.
        include_global_token: Whether the mean token preceded the locations.
        kind: Of the local features.
        templates: Prompt templates of absence and of presence.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    backbone: str
    pretrained: str | None
    resolution: int = Field(ge=1)
    include_global_token: bool
    kind: str
    templates: list[str]

    @classmethod
    def of(cls, config: Config, spec: Mapping[str, Any]) -> "Encoder":
        """That of some settings and of the features they made.

        Args:
            config: Settings.
            spec: Of the manifest of the features.
        """
        return cls(
            backbone=config.backbone,
            pretrained=config.pretrained,
            resolution=spec["resolution"],
            include_global_token=spec["include_global_token"],
            kind=spec["kind"],
            templates=list(spec["prompts"])[:2],
        )


class About(BaseModel):
    """Origin of a checkpoint; ``feature_space`` says which features it understands.

    ``epoch`` is the one its weights are of: the last, or the best on held-out images, as the
    recipe's ``selection`` says. ``encoder`` is None for checkpoints of before it was kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    method: str
    feature_space: str
    backbone_name: str
    embed_dim: int = Field(ge=1)
    class_names: list[str] = Field(min_length=1)
    recipe: Recipe
    seed: int
    epoch: int = Field(ge=1)
    features: str
    history: list[dict[str, float]]
    commit: str | None
    encoder: Encoder | None = None

    @model_validator(mode="after")
    def _history_reaches_the_epoch(self) -> Self:
        if "loss" not in dict(enumerate(self.history)).get(self.epoch - 1, {}):
            raise ValueError(f"the history tells nothing of epoch {self.epoch}")
        return self

    @property
    def made_on(self) -> str:
        """The features it was trained on, in words."""
        known = self.encoder
        if known is None:
            return f"{self.backbone_name} (resolution and kind unknown)"
        return f"{self.backbone_name} at {known.resolution} px, kind {known.kind}"

    def metadata(self) -> dict[str, str]:
        """What a file says of it; the encoder apart, so that earlier versions read the rest."""
        kept = {"dclip": self.model_dump_json(exclude={"encoder"})}
        return kept | ({"encoder": self.encoder.model_dump_json()} if self.encoder else {})


def read_about(path: Path) -> About:
    """Origin of a checkpoint, without its tensors.

    Raises:
        StageError: The file is missing or is no checkpoint of this format.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata: dict[str, Any] = file.metadata() or {}
    except FileNotFoundError:
        raise StageError(
            f"no checkpoint at {path}; run python -m pipeline.train with the same settings first"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise bad_checkpoint(
            path, f"no safetensors file, or a damaged one ({told(error)})"
        ) from None
    if "dclip" not in metadata:
        raise bad_checkpoint(path, "it does not say how it was trained")
    try:
        found = json.loads(metadata["dclip"])
        if not isinstance(found, dict) or "format" not in found:
            raise ValueError("no format is given")
        if found["format"] != FORMAT:
            raise StageError(
                f"{path} has format {found['format']}, this version reads {FORMAT}; delete it and "
                "train again"
            )
        if "encoder" in metadata:
            found["encoder"] = json.loads(metadata["encoder"])
        return About.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        why = f"{key}: {first['msg']}" if key else first["msg"].removeprefix("Value error, ")
    except (ValueError, RecursionError) as error:
        why = told(error)
    raise bad_checkpoint(path, f"what it says of its training is damaged ({why})")


def bad_checkpoint(path: Path, why: str) -> StageError:
    """What is said of a file that is no checkpoint, and why."""
    return StageError(
        f"{path} is not a checkpoint: {why}; give one that python -m pipeline.train made, or "
        "delete it and train again"
    )
