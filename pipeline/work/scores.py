"""What a report says of the scores of one method."""

from typing import Any

from torch import Tensor

from dclip.calibration import is_present, scaling_of
from dclip.checkpoints.calibration import Calibration
from dclip.metrics import (
    average_precision,
    expected_calibration_error,
    f1_scores,
    mean_average_precision,
    precision_recall,
    reliability,
)


def measure(scores: Tensor, labels: Tensor, threshold: float | None) -> dict[str, Any]:
    """Metrics of one system: AP by class, mAP, and where a threshold means something, F1s.

    A class without a positive has no AP, labels without any no mAP: they are None.

    Args:
        scores: One row an image, one column a class.
        labels: 1, 0, or -1 for unknown.
        threshold: From which a class counts as predicted; None where scores are no probabilities.
    """
    ap = average_precision(scores, labels)
    has_positive = bool((labels == 1).any())
    result: dict[str, Any] = {
        "map": mean_average_precision(scores, labels) if has_positive else None,
        "ap": [None if value != value else round(value, 6) for value in ap.tolist()],
    }
    if threshold is not None:
        f1 = f1_scores(scores, labels, threshold=threshold)
        result |= {name: round(float(value), 6) for name, value in f1._asdict().items()}
    return result


def measure_calibration(
    scores: Tensor,
    evidence: Tensor,
    labels: Tensor,
    known: Calibration | None,
    *,
    are_probabilities: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How far probabilities can be believed, and F1 at thresholds of a checkpoint's own.

    Args:
        scores: Of a method, as they are.
        evidence: See `dclip.methods.method.Method.evidence`.
        labels: 1, 0, or -1 for unknown.
        known: Of its checkpoint.
        are_probabilities: Whether the scores are.

    Returns:
        ``ece`` and, with a calibration, ``ece_calibrated``, ``cf1_chosen`` and ``of1_chosen``; and
        the curves of the pictures.
    """
    result: dict[str, Any] = {}
    recall, precision = precision_recall(scores, labels)
    curves: dict[str, Any] = {"recall": recall, "precision": precision}
    if are_probabilities:
        result["ece"] = expected_calibration_error(scores, labels)
        curves["as_it_is"] = _without_nan(reliability(scores, labels)._asdict())
    if known is not None:
        probabilities = scaling_of(known).apply(evidence).sigmoid()
        found = is_present(known, probabilities)
        f1 = f1_scores(found.double(), labels)
        result["ece_calibrated"] = expected_calibration_error(probabilities, labels)
        result |= {"cf1_chosen": f1.cf1, "of1_chosen": f1.of1}
        curves["calibrated"] = _without_nan(reliability(probabilities, labels)._asdict())
        curves["chosen"] = {"recall": f1.overall_recall, "precision": f1.overall_precision}
    told = {name: None if value != value else round(value, 6) for name, value in result.items()}
    return told, curves


def _without_nan(told: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """Values as JSON has them."""
    return {
        name: [None if value != value else value for value in values]
        for name, values in told.items()
    }
