"""What a report says of the scores of one method."""

from typing import Any

from torch import Tensor

from dclip.metrics import average_precision, f1_scores, mean_average_precision


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
