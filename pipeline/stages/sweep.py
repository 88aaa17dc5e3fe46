"""One search space to many trials of training, on cached features, compared in MLflow.

This stage names a sweep and refuses what cannot be swept; :mod:`pipeline.work.sweeping` runs it.
"""

import logging

from dclip.methods.settings import of_preset
from dclip.store.shards import digest
from dclip.words import counted
from pipeline.cluster.address import require_cluster
from pipeline.features.backbone import require_prompts
from pipeline.features.images import require_images
from pipeline.features.plan import FeaturePlan, is_complete, plan_features
from pipeline.records.trainings import of_features, of_subset
from pipeline.settings.config import Config
from pipeline.settings.space import MOST_SHOWN, entries, every_value, label, space_of
from pipeline.settings.training import (
    at,
    check_looped,
    identity_of,
    require_all_classes,
    require_fed,
)
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import UsageError

log = logging.getLogger(__name__)


def sweep_name(config: Config, plan: FeaturePlan) -> str:
    """Name of a sweep; a hash of features, method, settings, space and seed."""
    space = space_of(config)
    own = config.own
    swept = {key.removeprefix("train.") for key in space}
    swept_own = {key.removeprefix(f"{own.name}.") for key in space}
    identity = digest(
        {
            **of_features(plan),
            "method": config.method,
            "settings": {
                key: value
                for key, value in identity_of(config.method, own).items()
                if key not in swept_own
            },
            "loop": config.train.loop.model_dump(
                exclude=swept | {"epochs", "preset"}, exclude_defaults=True
            ),
            "val_fraction": config.train.val_fraction,
            "precision": config.train.precision,
            "space": space,
            "sweep": config.sweep.model_dump(exclude={"concurrency", "gpus_per_trial", "space"}),
            "seed": config.seed,
            "data_seed": config.data_seed,
            **of_subset(config.subset),
        }
    )
    return f"sweep-{identity[:12]}"


def run(config: Config) -> Report:
    """Run all trials, write table and picture, register the best, print where to compare them."""
    check(config)  # before anything is loaded, which takes seconds
    require_cluster()
    plan = plan_features(config, config.train_split)
    tried = [at(config, point).own for point in every_value(config)]
    require_prompts(config, plan.listing.class_names, tried)
    require_images(plan.listing, tried)
    from pipeline.work import sweeping

    return sweeping.run(config, plan, sweep_name(config, plan))


def check(config: Config) -> None:
    """Refuse what cannot be swept, before any file is read.

    Raises:
        UsageError: See :func:`pipeline.settings.space.entries`; or there are no held-out images to
            rank trials by, or several workers for each trial.
    """
    check_looped(config)
    tried = [at(config, point) for point in every_value(config)]
    require_all_classes(tried)
    if any(one.subset.protocol is not None for one in tried):
        raise UsageError(
            "subset.protocol holds no image out to compare trials by; take it out, or name its "
            "values in the rows of pipeline.compare"
        )
    require_fed(config, [one.own for one in tried])
    if config.sweep.search != "optuna":
        entries(config)
    if config.train.val_fraction == 0:
        raise UsageError("a sweep ranks trials by val/map; --train.val-fraction must be above 0")
    usual, _ = of_preset(type(config.own), config.train.preset)
    if config.train.epochs not in (usual.epochs, config.sweep.epochs):
        log.info(
            "sweep: trials have %s (--sweep.epochs); --train.epochs %d is for pipeline.train",
            counted(config.sweep.epochs, "epoch"), config.train.epochs,
        )  # fmt: skip
    if config.train.workers > 1:
        raise UsageError(
            f"a sweep runs many trials at once, each in one process; --train.workers "
            f"{config.train.workers} is for pipeline.train, use --sweep.concurrency here"
        )


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    check(config)
    plan = plan_features(config, config.train_split)
    tried = [at(config, point).own for point in every_value(config)]
    require_prompts(config, plan.listing.class_names, tried)
    require_images(plan.listing, tried)
    sweep = config.sweep
    lines = [f"features {plan.folder} ({'complete' if is_complete(plan) else 'not extracted yet'})"]
    if sweep.search == "optuna":
        trials = [f"chosen from {label(dict(space_of(config)))}"]
        count = sweep.trials or 8
    else:
        points = entries(config)
        count = len(points)
        trials = [label(entry.point) for entry in points[:MOST_SHOWN]]
        if count > MOST_SHOWN:
            trials.append(f"and {count - MOST_SHOWN} more")
    size = f"{counted(count, 'trial')} of {counted(sweep.epochs, 'epoch')}"
    return "\n".join([*lines, f"{sweep_name(config, plan)}: {size}", *trials])
