"""Thresholds and probabilities of what was just trained, from the images that it held out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dclip.calibration import CalibrationError
from dclip.checkpoints.calibration import Calibration, Rule
from dclip.checkpoints.files import write_checkpoint
from dclip.fitting.batches import FeatureSource
from dclip.fitting.held_out import calibrate_method
from dclip.methods.method import Method
from pipeline.cluster.device import choose_device
from pipeline.features.opened import open_features, with_images
from pipeline.features.plan import FeaturePlan
from pipeline.records.checkpoints import check_features, load_checkpoint
from pipeline.settings.config import Config
from pipeline.settings.training import at
from pipeline.terminal.errors import StageError
from pipeline.work.packs import Job

log = logging.getLogger(__name__)


def calibration_of(
    method: Method[Any],
    features: FeatureSource,
    held: Int64[np.ndarray, " held"],
    name: str,
) -> Calibration | None:
    """That of a trained method; None, with a line that says why, where nothing was held out for it.

    Args:
        method: Trained.
        features: What it is fed, with labels.
        held: Rows that it was not trained on.
        name: What messages call it.
    """
    if not method.task.class_names:  # trained on captions: no class is asked for
        return None
    try:
        return calibrate_method(method, features, held)
    except CalibrationError as error:
        log.info("train: %s keeps no thresholds of its own: %s", name, error)
        return None


def recalibrate(config: Config, plan: FeaturePlan, path: Path) -> Calibration:
    """Give a checkpoint new thresholds, in its file; weights and all else stay as they are.

    Args:
        config: Settings; they say which images were held out, and what is wanted.
        plan: Features of the images that tell.
        path: The checkpoint.

    Raises:
        StageError: Features are missing or of another CLIP, or the images say nothing.
    """
    own = config.calibrate
    reader = open_features(plan.folders[:1], config.output)
    method, about = load_checkpoint(path)
    check_features(path, about, reader.manifest)
    features: FeatureSource = reader
    device, _ = choose_device(config.device)
    if method.settings.sees_images():
        features = with_images(reader, plan.listing, method.settings)
        method = method.on(device)
    rows = np.arange(len(reader))
    if own.split is None:
        job = Job(config.method, (at(config, {}),), (config.seed,), config.data_seed, (),
                  config.output)  # fmt: skip
        features, _, rows = job.data(features, reader.class_names)
    try:
        found = calibrate_method(method, features, rows, kind=own.kind, rule=Rule.parse(own.rule))
    except CalibrationError as error:
        raise StageError(f"checkpoint {path}: {error}") from None
    changed = about.model_copy(update={"calibration": found})
    write_checkpoint(path, method.on("cpu"), changed)
    return found
