"""Trainings by name: what files and MLflow call them, and where they keep what."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip.fitting.subset import Subset
from dclip.methods.settings import of_preset
from dclip.store.shards import digest
from pipeline.features.plan import FeaturePlan
from pipeline.settings.config import Config
from pipeline.settings.training import DATA, PLACEMENT, identity_of

STATE, HISTORY = "state.safetensors", "history.jsonl"
"""In the folder of a pack: how far it is, and what each epoch did to each of its trainings."""


def checkpoint_path(config: Config, plan: FeaturePlan) -> Path:
    """Where the checkpoint of these settings goes; the name holds a hash of all that shapes it."""
    return config.output.absolute() / "checkpoints" / f"{run_name(config, plan)}.safetensors"


def run_name(config: Config, plan: FeaturePlan) -> str:
    """Name of a training, and a hash of features, method, settings and seed.

    Settings at their defaults are left out of the hash:
    :func:`pipeline.settings.training.identity_of`.
    """
    loop = config.train.model_dump(
        include=_counting(config), exclude={*PLACEMENT, "preset"}, exclude_defaults=True
    )
    identity = digest(
        {
            **of_features(plan),
            "method": config.method,
            "settings": identity_of(config.method, config.own),
            "loop": loop,
            "seed": config.seed,
            **of_subset(config.subset),
        }
    )
    return f"{config.trained_name}-{identity[:12]}"


def _counting(config: Config) -> set[str] | None:
    """Settings of the section ``train`` that count; None for all."""
    return None if config.own.trained_by == "loop" else set(DATA)


def pack_folder(config: Config, names: Sequence[str]) -> Path:
    """Where trainings of these names that are one pack keep state and history."""
    name = names[0] if len(names) == 1 else f"pack-{digest({'pack': names})[:12]}"
    return config.output.absolute() / "train" / name


def read_history(path: Path) -> list[list[dict[str, float]]]:
    """One line an epoch, with what it did to each training; none if no epoch is done."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def of_features(plan: FeaturePlan) -> dict[str, Any]:
    """What the features are in hashes that name results."""
    views = [view.fingerprint for view in plan.views]
    return {"features": plan.fingerprint, **({"views": views} if views else {})}


def of_subset(subset: Subset) -> dict[str, Any]:
    """What a part of the data is in hashes that name results; all of it is nothing."""
    said = subset.identity()
    return {"subset": said} if said else {}


def shown_name(config: Config, name: str) -> str:
    """How MLflow shows a training: the method, what differs from its preset, and the short hash."""
    own, loop = config.own, config.train
    usual_loop, usual = of_preset(type(own), loop.preset)
    variant = own.variant()
    said = own.variants[variant].changes if variant else {}  # by the name
    words = [
        f"{key}={getattr(mine, key)}"
        for mine, theirs in ((own, usual), (loop, usual_loop))
        for key in type(theirs).model_fields
        if (mine is own or own.trained_by == "loop")
        and getattr(mine, key) != getattr(theirs, key)
        and not (mine is own and key in said and config.trained_name == variant)
    ]
    words += [f"{key}={value}" for key, value in config.subset.identity().items()]
    if config.seed:
        words.append(f"seed={config.seed}")
    preset_words = [loop.preset] if loop.preset != own.usual_preset() else []
    more = [f"and {len(words) - 4} more"] if len(words) > 4 else []
    return " ".join([config.trained_name, *preset_words, *words[:4], *more, name[-12:][:6]])


def run_params(config: Config, plan: FeaturePlan) -> dict[str, Any]:
    """What MLflow shows as the parameters of a training."""
    keep = {"dataset", "backbone", "pretrained", "resolution", "seed", "train_split"}
    return {
        **flat(config.model_dump(include=keep)),
        "method": config.method,
        **flat(config.train.model_dump(include=_counting(config), exclude={*PLACEMENT}), "train."),
        **flat(config.own.model_dump(), f"{config.own.name}."),
        **flat(config.subset.identity(), "subset."),
        "features": plan.fingerprint[:12],
    }


def metric_names(line: Mapping[str, float]) -> dict[str, float]:
    """Line of the history under the names MLflow shows; its plots open on the first one."""
    first = {"val/map": line["val_map"]} if "val_map" in line else {}
    others = {f"train/{key}": v for key, v in line.items() if key not in ("epoch", "val_map")}
    return first | others


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
