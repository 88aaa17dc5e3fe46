"""Thresholds and probabilities of what was just trained, from the images that it held out."""

import logging
from typing import Any

import numpy as np
from jaxtyping import Int64

from dclip.calibration import CalibrationError
from dclip.checkpoints.calibration import Calibration
from dclip.fitting.batches import FeatureSource
from dclip.fitting.held_out import calibrate_method
from dclip.methods.method import Method

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
