"""What a checkpoint says of its origin; reading it takes no torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import safetensors
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dclip.data.preparation import Interpolation, Resize
from dclip.fitting.loop import Loop
from dclip.fitting.subset import Subset
from dclip.methods.registry import find_settings, is_known
from dclip.methods.settings import MethodSettings
from dclip.store.shards import Manifest, digest
from pipeline.features.backbone import BackboneInfo, ClipSettings, describe_backbone
from pipeline.features.images import AboutImages
from pipeline.features.plan import FeaturePlan
from pipeline.records.provenance import git_commit
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError, told

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

    @classmethod
    def of(cls, config: Config, spec: Mapping[str, Any]) -> Self:
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
            tag=config.tag,
            resize=config.resize,
            interpolation=config.interpolation,
            mean=config.mean,
            std=config.std,
            kind=spec["kind"],
            templates=list(spec["prompts"])[:2],
        )


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

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, MethodSettings) or "method" not in info.data:
            return value
        return find_settings(info.data["method"]).model_validate(value)

    @model_validator(mode="after")
    def _has_classes_or_captions(self) -> Self:
        if not self.class_names and "captions" not in self.settings.training_feeds():
            raise ValueError("class_names: there is none")
        return self

    @model_validator(mode="after")
    def _history_reaches_the_epoch(self) -> Self:
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

    def metadata(self) -> dict[str, str]:
        """What a file says of it."""
        whole = {"subset"} if self.subset is None else None
        return {"dclip": self.model_dump_json(exclude=whole)}


def about_training(
    config: Config,
    plan: FeaturePlan,
    manifest: Manifest | AboutImages,
    *,
    epoch: int,
    seed: int,
    history: Sequence[Mapping[str, float]],
) -> About:
    """Origin of what some settings have trained.

    Args:
        config: Settings, those of the loop and of the method as they were trained.
        plan: Features.
        manifest: Of the features, or of images of which none are kept.
        epoch: Which one the weights are of.
        seed: Of the initial weights.
        history: One line an epoch.
    """
    return About(
        format=FORMAT,
        method=config.method,
        name=config.trained_name,
        settings=config.own,
        loop=config.train.loop if config.own.trained_by == "loop" else Loop(),
        feature_space=plan.feature_space,
        formerly=plan.formerly,
        backbone_name=str(manifest.spec["backbone_name"]),
        embed_dim=manifest.dim,
        class_names=list(manifest.class_names),
        seed=seed,
        epoch=epoch,
        features=plan.fingerprint,
        history=[dict(line) for line in history],
        commit=git_commit(),
        encoder=Encoder.of(config, manifest.spec),
        text_width=describe_backbone(config).text_width if config.own.needs_gradients else None,
        subset=config.subset if config.subset.identity() else None,
    )


def read_about(path: Path) -> About:
    """Origin of a checkpoint, without its tensors.

    Raises:
        StageError: The file is missing, is no checkpoint, or is of a method that has to be named.
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
        said = json.loads(metadata["dclip"])
        if not isinstance(said, dict) or "format" not in said:
            raise ValueError("no format is given")
        if said["format"] == _EARLIER:
            said = _from_earlier(said, metadata)
        if said["format"] != FORMAT:
            raise StageError(
                f"{path} has format {said['format']}, this version reads {FORMAT}; delete it and "
                "train again"
            )
        method = str(said.get("method"))
        if not is_known(method):  # code of the user's own is imported when they name it, only
            raise StageError(
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


def kind_trained_on(path: Path, about: About, backbone: BackboneInfo) -> str:
    """The kind of a backbone's local features that a checkpoint was trained on.

    Raises:
        StageError: It was trained on another backbone, or at another resolution.
    """
    spaces = {digest(backbone.former_space(kind)): kind for kind in backbone.paths}
    spaces |= {digest(backbone.space(kind)): kind for kind in backbone.paths}
    if about.feature_space not in spaces:
        raise StageError(
            f"checkpoint {path} was trained on features of {about.made_on} "
            f"({about.feature_space[:12]}), not of {backbone.name} at {backbone.resolution} "
            "px; give the backbone, weights and resolution it was trained with"
        )
    return spaces[about.feature_space]


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


def bad_checkpoint(path: Path, why: str) -> StageError:
    """What is said of a file that is no checkpoint, and why."""
    return StageError(
        f"{path} is not a checkpoint: {why}; give one that python -m pipeline.train made, or "
        "delete it and train again"
    )
