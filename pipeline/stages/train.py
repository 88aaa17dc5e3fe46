"""Feature shards to a checkpoint: which trainings are there, which are made, what they came to.

Trainings that differ only in what the method lets differ are one pack, on one Ray Train run
(:mod:`pipeline.work.training`).
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence

from dclip.checkpoints.origin import About, read_about
from dclip.store.shards import MANIFEST
from dclip.words import counted, percent
from pipeline.cluster.address import require_cluster
from pipeline.features.backbone import clip_of, describe_backbone, require_prompts
from pipeline.features.images import require_images
from pipeline.features.plan import FeaturePlan, plan_features
from pipeline.records.trainings import STATE, checkpoint_path, pack_folder, run_name
from pipeline.settings.config import Config
from pipeline.settings.training import alike, at, check_trained, require_all_classes
from pipeline.terminal.cli import Report

log = logging.getLogger(__name__)

# above it, what a training computes of classes by classes takes the room, and each is by itself
_MOST_CLASSES_TOGETHER = 1000


def run(config: Config) -> Report:
    """Train the method of these settings, unless its checkpoint stands."""
    return run_together([config])[0]


def run_together(configs: Sequence[Config]) -> list[Report]:
    """Train the methods of several settings as one pack, those whose checkpoint does not stand.

    Args:
        configs: Settings that differ in the method's own and in ``name`` alone.
    """
    started = time.perf_counter()
    for config in configs:
        check_trained(config)
        require_all_classes([at(config, {})])
    plan = _planned(configs[0])
    if not plan.listing.class_names:  # of others the extraction has told
        for note in plan.notes:
            log.info("train: %s", note)
    for config in configs:
        require_prompts(config, plan.listing.class_names)
        require_images(plan.listing, [config.own])
        for remark in config.own.remarks(config.train):
            log.warning("warning: %s", remark)
    paths = [checkpoint_path(config, plan) for config in configs]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    for path in paths:
        if path.is_file():
            log.info("train: nothing to do, %s stands", path)
    if missing and configs[0].own.trained_by == "itself":
        from pipeline.work import fitting  # which loads torch, and no Ray

        for number in missing:
            fitting.fit_alone(configs[number], plan, paths[number])
    elif missing:
        require_cluster()  # what follows takes seconds to load
        from pipeline.work import training

        for group in _groups(configs, plan, missing):
            training.train([configs[n] for n in group], plan, [paths[n] for n in group])
    seconds = round(time.perf_counter() - started, 2)
    reports = []
    for number, path in enumerate(paths):
        about = read_about(path)
        kept = about.history[about.epoch - 1]
        sys.stdout.write(f"{about.name}: {_came_to(about, kept)}, at {path}\n")
        reports.append(
            {
                "stage": "train",
                "method": about.name,
                "checkpoint": str(path),
                "trained_now": number in missing,
                "final": kept,
                "seconds": seconds,
            }
        )
    return reports


def _planned(config: Config) -> FeaturePlan:
    """What is trained on: features, or images with captions alone for a method that is fed these.

    Raises:
        UsageError: See :func:`pipeline.features.plan.plan_features`.
    """
    fed = config.own.training_feeds()
    by_captions = "captions" in fed and fed <= {"pixels", "captions"}
    return plan_features(config, config.train_split, needs_classes=not by_captions)


def _came_to(about: About, line: Mapping[str, float]) -> str:
    """A line of a history in words."""
    val_map = f"val/map {percent(line.get('val_map'))}"
    if about.settings.trained_by != "loop":
        said = {key: value for key, value in line.items() if key not in ("epoch", "val_map")}
        words = [f"{name.replace('_', '-')} {value:.4g}" for name, value in said.items()]
        return ", ".join(["fitted", val_map, *words])
    watched = "".join(
        f", {name.replace('_', '-')} {_number(line.get(name))}" for name in about.settings.watched
    )
    return (
        f"epoch {about.epoch} ({about.loop.selection}), loss {line['loss']:.4f}, {val_map}{watched}"
    )


def _groups(
    configs: Sequence[Config], plan: FeaturePlan, missing: Sequence[int]
) -> list[list[int]]:
    """Numbers of the settings that train together, of those whose checkpoint is missing."""
    if len(plan.listing.class_names) > _MOST_CLASSES_TOGETHER:
        return [[number] for number in missing]
    groups = []
    for kind in alike([at(config, {}) for config in configs]):
        own = [number for number in kind if number in missing]
        names = [run_name(configs[number], plan) for number in kind]
        if own and (pack_folder(configs[0], names) / STATE).is_file():
            own = kind  # they were begun together: what is lost is written from what is kept
        groups += [own] if own else []
    return groups


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    from pipeline.work.packs import num_parameters, placeholder  # a method's weights take torch

    check_trained(config)
    require_all_classes([at(config, {})])
    plan = _planned(config)
    path = checkpoint_path(config, plan)
    names = plan.listing.class_names
    require_prompts(config, names)
    require_images(plan.listing, [config.own])
    clip = clip_of(config)
    method = placeholder(config.method, config.own, names, describe_backbone(config), clip)
    held = round(plan.num_images * config.train.val_fraction)
    how = (
        f"{config.train.epochs} epochs, preset {config.train.preset}, "
        f"{counted(config.train.workers, 'worker')}"
        if config.own.trained_by == "loop"
        else "fitted at once, in this process"
    )
    features = "complete" if (plan.folder / MANIFEST).is_file() else "not extracted yet"
    said = f"features {plan.folder} ({features})"
    if not names:
        said = f"captions of {plan.listing.name} {plan.listing.split}; no features are kept"
    return "\n".join(
        [
            said,
            f"{plan.num_images - held} images to train on, {held} held out for val/*",
            f"{num_parameters(method)} parameters, {how}",
            f"checkpoint {path} ({'stands' if path.is_file() else 'to be made'})",
            *(f"note: {remark}" for remark in config.own.remarks(config.train)),
        ]
    )
