"""What one training is, by the settings: which there are, what each is made of, which go together.

Pure reading: no file is looked at, and neither numpy nor torch is loaded.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dclip.fitting.subset import Subset
from dclip.methods.registry import METHODS, find_settings
from dclip.methods.settings import MethodSettings
from pipeline.settings.config import Config
from pipeline.settings.sections import TrainConfig
from pipeline.terminal.errors import UsageError

LOOP, SUBSET = "train.", "subset."
"""Before the keys of the training loop, and of the data, in a sweep and in an ablation."""

PLACEMENT = frozenset({"workers", "min_workers", "max_failures", "checkpoint_seconds", "cache"})
"""Of the section ``train``: where and how often, not what; the trained weights stay the same."""

DATA = frozenset({"val_fraction", "data_seed"})
"""Of the section ``train``: which images are trained on, which counts without a loop as well."""


class Trained(NamedTuple):
    """Settings of one training.

    Attributes:
        loop: Those of the section ``train``.
        own: Those of the method.
        subset: Which part of the data it is trained on.
    """

    loop: TrainConfig
    own: MethodSettings
    subset: Subset = Subset()


def trained_at(
    loop: Mapping[str, Any],
    method: str,
    own: Mapping[str, Any],
    subset: Mapping[str, Any],
    point: Mapping[str, Any],
) -> Trained:
    """Settings of the training at a point.

    Args:
        loop: Values of the section ``train``, outside the point.
        method: Name of the method.
        own: Values of its own section.
        subset: Values of the section ``subset``.
        point: Values of the keys that are changed.
    """
    settings = find_settings(method)
    prefix = f"{settings.name}."
    return Trained(
        TrainConfig.model_validate({**loop, **_below(point, LOOP)}),
        settings.model_validate({**own, **_below(point, prefix)}),
        Subset.model_validate({**subset, **_below(point, SUBSET)}),
    )


def _below(point: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): v for key, v in point.items() if key.startswith(prefix)}


def at(config: Config, point: Mapping[str, Any]) -> Trained:
    """Settings of the training at a point of these settings."""
    return trained_at(
        config.train.model_dump(),
        config.method,
        config.own.model_dump(),
        config.subset.model_dump(),
        point,
    )


def alike(trained: Sequence[Trained]) -> list[list[int]]:
    """Numbers of trainings that can share passes over the features, group by group."""
    groups: dict[str, list[int]] = {}
    for number, (loop, own, subset) in enumerate(trained):
        common = loop.model_dump_json() + json.dumps(own.common()) + subset.model_dump_json()
        if not own.packed:
            common = f"{number} {common}"
        groups.setdefault(common, []).append(number)
    return list(groups.values())


def identity_of(method: str, own: MethodSettings) -> dict[str, Any]:
    """What a method's settings are in hashes that name results.

    Of the package's methods those at their defaults are left out, so that one more of them renames
    nothing that stands; that their defaults stay is tested. Defaults of a method of one's own may
    be under way, and all of it counts.
    """
    return own.model_dump(mode="json", exclude_defaults=method in METHODS)


def compared(config: Config) -> list[Config]:
    """Settings of the trainings that are compared: the method's variants, and the method."""
    own = config.own
    if own.variant() is not None:
        return [config]
    plain = [
        config.with_own(**variant.changes).model_copy(update={"name": name})
        for name, variant in own.variants.items()
    ]
    return [*plain, config]


def require_all_classes(trained: Iterable[Trained]) -> None:
    """Refuse trainings on some of the classes where others are scored, or a checkpoint is kept.

    Raises:
        UsageError: There is one.
    """
    every = list(trained)
    if any(one.subset.protocol == "base_to_new" for one in every):
        raise UsageError(
            "subset.protocol base_to_new is for pipeline.compare, which scores base and new "
            "classes; take it out here"
        )
    if any(one.subset.classes is not None for one in every):
        raise UsageError(
            "subset.classes is for pipeline.ablate and pipeline.compare, which score the classes "
            "that they train on; take it out here"
        )


def require_fed(config: Config, tried: Iterable[MethodSettings]) -> None:
    """Refuse settings of the method that train on what features do not hold.

    Raises:
        UsageError: One of them does.
    """
    for own in tried:
        if own.sees_images():
            continue  # which the data set may have
        if lacking := sorted(own.training_feeds() - {"local", "embedding"}):
            raise UsageError(
                f"--method {config.method} is fed {' and '.join(lacking)}, which features on disk "
                "do not hold"
            )


def check_trained(config: Config) -> None:
    """Refuse settings that contradict each other, before any file is read.

    Raises:
        UsageError: There are fewer workers than the least number, none of their device's memory, or
            the method is not trained, or fed what features do not hold.
    """
    train = config.train
    if config.own.trained_by is None:
        raise UsageError(
            f"--method {config.method} is not trained here: pipeline.evaluate has it beside every "
            f"checkpoint{_IF_ASKED.get(config.method, '')}"
        )
    require_fed(config, [config.own])
    if train.min_workers is not None and train.min_workers > train.workers:
        raise UsageError(
            f"--train.min-workers {train.min_workers} is more than --train.workers {train.workers}"
        )
    if train.cache == "device" and config.device == "cpu":
        raise UsageError(
            "--train.cache device: the training runs on the CPU (as asked); use ram or none"
        )


# what pipeline.evaluate has where it is asked to
_IF_ASKED = {
    "zero_shot_pooled": " by --evaluate.zero-shot-pooled",
    "tagclip": " by --evaluate.tagclip robust",
}


def check_looped(config: Config) -> None:
    """Refuse what :func:`check_trained` does, and methods that have no loop to vary.

    Raises:
        UsageError: See above.
    """
    check_trained(config)
    if config.own.trained_by != "loop":
        raise UsageError(
            f"--method {config.method} fits itself, without the training loop: train it by "
            "python -m pipeline.train"
        )
