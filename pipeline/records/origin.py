"""Origin of what settings train, and whether a checkpoint goes with a backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip.checkpoints import origin
from dclip.checkpoints.calibration import Calibration
from dclip.checkpoints.origin import FORMAT, About, Encoder
from dclip.fitting.loop import Loop
from dclip.provenance import git_commit
from dclip.store.shards import Manifest, digest
from pipeline.features.backbone import BackboneInfo, describe_backbone
from pipeline.features.images import AboutImages
from pipeline.features.plan import FeaturePlan
from pipeline.settings.config import Config


def encoder_of(config: Config, spec: Mapping[str, Any]) -> Encoder:
    """The frozen CLIP of some settings and of the features they made.

    Args:
        config: Settings.
        spec: Of the manifest of the features.
    """
    return Encoder(
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


def about_training(
    config: Config,
    plan: FeaturePlan,
    manifest: Manifest | AboutImages,
    *,
    epoch: int,
    seed: int,
    history: Sequence[Mapping[str, float]],
    calibration: Calibration | None = None,
) -> About:
    """Origin of what some settings have trained.

    Args:
        config: Settings, those of the loop and of the method as they were trained.
        plan: Features.
        manifest: Of the features, or of images of which none are kept.
        epoch: Which one the weights are of.
        seed: Of the initial weights.
        history: One line an epoch.
        calibration: By the images that were held out.
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
        encoder=encoder_of(config, manifest.spec),
        text_width=describe_backbone(config).text_width if config.own.needs_gradients else None,
        subset=config.subset if config.subset.identity() else None,
        calibration=calibration,
    )


def kind_trained_on(path: Path, about: About, backbone: BackboneInfo) -> str:
    """The kind of a backbone's local features that a checkpoint was trained on.

    Raises:
        CheckpointError: It was trained on another backbone, or at another resolution.
    """
    spaces = {
        kind: {digest(backbone.space(kind)), digest(backbone.former_space(kind))}
        for kind in backbone.paths
    }
    name = f"{backbone.name} at {backbone.resolution} px"
    return origin.kind_trained_on(about, spaces, what=f"checkpoint {path}", backbone=name)
