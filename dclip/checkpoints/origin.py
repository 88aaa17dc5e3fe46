"""What a checkpoint says of its origin; reading it takes no torch."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from dclip.checkpoints.calibration import Calibration
from dclip.clip_settings import ClipSettings
from dclip.data.preparation import Interpolation, Resize
from dclip.fitting.loop import Loop
from dclip.fitting.subset import Subset
from dclip.methods.registry import find_settings, is_known
from dclip.methods.settings import MethodSettings
from dclip.words import told


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one that can be used here; the message names both."""


FORMAT = 3
_EARLIER = 2  # which had one method, its settings and those of the loop in one


class Encoder(BaseModel):
    """The frozen CLIP behind a checkpoint, in the words of the settings.

    Attributes:
        backbone: Name it is opened by.
        pretrained: Tag or file of its weights; None for the usual ones.
        resolution: Side of its images in pixels.
        include_global_token: Whether the mean token preceded the locations.
        tag: Released weights that a file was said to hold.
        resize: How images became squares, where it was said.
        interpolation: Likewise.
        mean: Channel means, where they were said.
        std: Channel deviations, where they were said.
        kind: Of the local features.
        templates: Prompt templates of absence and of presence.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    backbone: str
    pretrained: str | None
    resolution: int = Field(ge=1)
    include_global_token: bool
    tag: str | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    kind: str
    templates: list[str]

    @property
    def clip(self) -> ClipSettings:
        """What it is opened by; the mean token is left to what a backbone of one's own chooses."""
        token = None if ":" in self.backbone else self.include_global_token
        own = {name: getattr(self, name) for name in ClipSettings._fields[4:]}
        return ClipSettings(self.backbone, self.pretrained, self.resolution, token, **own)


class About(BaseModel):
    """Origin of a checkpoint.

    Attributes:
        format: Of the file.
        method: The method, as in :func:`dclip.methods.registry.find_method`.
        name: What reports call the training.
        settings: The method's own.
        loop: Those of the training loop.
        feature_space: Which features it understands.
        formerly: What version 0.1 had for ``feature_space``; empty in checkpoints of that time.
        backbone_name: Of the frozen CLIP.
        embed_dim: Width of its joint space.
        class_names: In column order; none where captions alone were trained on.
        seed: Of the initial weights.
        epoch: Which one its weights are of: the last, or the best on held-out images, as the loop's
            ``selection`` says.
        features: Fingerprint of the features it was trained on.
        history: One line an epoch; one line in all of a method that fits itself.
        commit: Of the code that trained it.
        encoder: None for checkpoints of before it was kept.
        text_width: Numbers in a token of its text tower, where contexts can enter it.
        subset: Which part of the data it was trained on; None for all of it.
        calibration: Probabilities and thresholds by held-out images; None where there were none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    method: str
    name: str
    settings: SerializeAsAny[MethodSettings]
    loop: Loop
    feature_space: str
    formerly: str = ""
    backbone_name: str
    embed_dim: int = Field(ge=1)
    class_names: list[str]
    seed: int
    epoch: int = Field(ge=1)
    features: str
    history: list[dict[str, float]]
    commit: str | None
    encoder: Encoder | None = None
    text_width: int | None = Field(None, ge=1)
    subset: Subset | None = None
    calibration: Calibration | None = None

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_method(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not {"method", "settings"} <= values.keys():
            return values
        if isinstance(values["settings"], MethodSettings):
            return values
        settings = find_settings(values["method"]).model_validate(values["settings"])
        return {**values, "settings": settings}

    @model_validator(mode="after")
    def _has_classes_or_captions(self) -> "About":
        if not self.class_names and "captions" not in self.settings.training_feeds():
            raise ValueError("class_names: there is none")
        return self

    @model_validator(mode="after")
    def _history_reaches_the_epoch(self) -> "About":
        line = dict(enumerate(self.history)).get(self.epoch - 1, {})
        if ("loss" if self.settings.trained_by == "loop" else "epoch") not in line:
            raise ValueError(f"the history tells nothing of epoch {self.epoch}")
        return self

    @property
    def made_on(self) -> str:
        """The features it was trained on, in words."""
        known = self.encoder
        if known is None:
            return f"{self.backbone_name} (resolution and kind unknown)"
        return f"{self.backbone_name} at {known.resolution} px, kind {known.kind}"

    @property
    def made_with(self) -> tuple[object, ...]:
        """Equal for trainings that were made at once, such as a method and its variants."""
        return self.features, self.seed, self.loop, self.subset, self.commit

    def metadata(self) -> dict[str, str]:
        """What a file says of it."""
        left_out = {name for name in ("subset", "calibration") if getattr(self, name) is None}
        return {"dclip": self.model_dump_json(exclude=left_out)}


def kind_trained_on(
    about: About, spaces: Mapping[str, Collection[str]], *, what: str, backbone: str
) -> str:
    """The kind of a backbone's local features that a checkpoint was trained on.

    Args:
        about: Of the checkpoint.
        spaces: Hashes of the feature space of each kind, that of version 0.1 among them.
        what: How messages call the checkpoint.
        backbone: How they call the backbone, with its resolution.

    Raises:
        CheckpointError: It was trained on another backbone, or at another resolution.
    """
    for kind, hashes in spaces.items():
        if about.feature_space in hashes:
            return kind
    raise CheckpointError(
        f"{what} was trained on features of {about.made_on} ({about.feature_space[:12]}), not of "
        f"{backbone}; give the backbone, weights and resolution it was trained with"
    )


def read_about(path: Path) -> About:
    """Origin of a checkpoint, without its tensors.

    Raises:
        CheckpointError: The file is missing, is no checkpoint, or is of a method that has to be
            named.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata: dict[str, Any] = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(
            f"no checkpoint at {path}; run python -m pipeline.train with the same settings first"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise bad_checkpoint(
            path, f"no safetensors file, or a damaged one ({told(error)})"
        ) from None
    if "dclip" not in metadata:
        raise bad_checkpoint(path, "it does not say how it was trained")
    try:
        said = json.loads(metadata["dclip"])
        if not isinstance(said, dict) or "format" not in said:
            raise ValueError("no format is given")
        if said["format"] == _EARLIER:
            said = _from_earlier(said, metadata)
        if said["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {said['format']}, this version reads {FORMAT}; delete it and "
                "train again"
            )
        method = str(said.get("method"))
        if not is_known(method):  # code of the user's own is imported when they name it, only
            raise CheckpointError(
                f"checkpoint {path} is of method {method!r}, which is no method of this package; "
                f"name it by --method {method}"
            )
        return About.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        why = f"{key}: {first['msg']}" if key else first["msg"].removeprefix("Value error, ")
    except (ValueError, RecursionError) as error:
        why = told(error)
    raise bad_checkpoint(path, f"what it says of its training is damaged ({why})")


def _from_earlier(said: dict[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What format 2 says, in the words of this one."""
    recipe, kept = said.pop("recipe", None), said.pop("method", None)
    if not isinstance(recipe, dict):
        raise ValueError("recipe: Field required")
    settings = find_settings("dclip")
    own = {key: value for key, value in recipe.items() if key in settings.model_fields}
    loop = {key: value for key, value in recipe.items() if key not in settings.model_fields}
    encoder = json.loads(metadata["encoder"]) if "encoder" in metadata else None
    named = {"format": FORMAT, "method": "dclip", "name": kept}
    return {**said, **named, "settings": own, "loop": loop, "encoder": encoder}


def bad_checkpoint(path: Path, why: str) -> CheckpointError:
    """What is said of a file that is no checkpoint, and why."""
    return CheckpointError(
        f"{path} is not a checkpoint: {why}; give one that python -m pipeline.train made, or "
        "delete it and train again"
    )
