"""F1 from per-class averages (CF1) and from pooled counts (OF1)."""

from typing import NamedTuple

from jaxtyping import Float, Shaped
from torch import Tensor


class F1Scores(NamedTuple):
    """Precision, recall and F1, per class and overall, at one threshold; all in [0, 1].

    Attributes:
        class_precision: C-P, mean over classes of each class's precision.
        class_recall: C-R, mean over classes of each class's recall.
        cf1: Harmonic mean of ``class_precision`` and ``class_recall``.
        overall_precision: O-P, precision of the counts summed over classes.
        overall_recall: O-R, recall of the counts summed over classes.
        of1: Harmonic mean of ``overall_precision`` and ``overall_recall``.
    """

    class_precision: float
    class_recall: float
    cf1: float
    overall_precision: float
    overall_recall: float
    of1: float


def f1_scores(
    probabilities: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    threshold: float = 0.5,
) -> F1Scores:
    """Count predictions above a threshold and score the counts.

    A ratio without a count below it is 0: a class never predicted has precision 0, a class never
    present has recall 0, and both stay in the means over classes. CF1 is the harmonic mean of the
    two means, as the field reports it, not the mean of the classes' F1.

    Args:
        probabilities: Probabilities of presence in [0, 1].
        labels: Entries 1 (present), 0 (absent) or -1 (unknown: not counted).
        threshold: A class is predicted where its probability lies above it, in [0, 1].

    Returns:
        Precision, recall and F1, per class and overall.

    Raises:
        ValueError: If the shapes differ, there is no class, the threshold lies outside [0, 1], a
            probability is ``nan``, or a label is none of 1, 0, -1.

    References:
        Wang et al., "CNN-RNN: A Unified Framework for Multi-label Image Classification",
        CVPR 2016, section 4, for the six measures.

    Example:
        >>> import torch
        >>> f1_scores(torch.tensor([[0.9, 0.6]]), torch.tensor([[1, 0]])).of1
        0.6666666666666666
    """
    if probabilities.ndim != 2 or probabilities.shape != labels.shape or not labels.shape[1]:
        raise ValueError(
            "expected probabilities and labels [images, classes] with at least one class, got "
            f"{list(probabilities.shape)} and {list(labels.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if probabilities.isnan().any():
        raise ValueError(f"{int(probabilities.isnan().sum())} probabilities are nan")
    is_valid = (labels == 1) | (labels == 0) | (labels == -1)
    if not is_valid.all():
        raise ValueError(
            "labels must be 1 (present), 0 (absent) or -1 (unknown), got "
            f"{labels[~is_valid][0].item()}"
        )
    is_predicted = (probabilities > threshold) & (labels != -1)
    is_present = labels == 1
    hits = (is_predicted & is_present).sum(dim=0).tolist()
    predicted = is_predicted.sum(dim=0).tolist()
    present = is_present.sum(dim=0).tolist()

    num_classes = len(hits)
    class_precision = sum(map(_ratio, hits, predicted)) / num_classes
    class_recall = sum(map(_ratio, hits, present)) / num_classes
    overall_precision = _ratio(sum(hits), sum(predicted))
    overall_recall = _ratio(sum(hits), sum(present))
    return F1Scores(
        class_precision=class_precision,
        class_recall=class_recall,
        cf1=_harmonic_mean(class_precision, class_recall),
        overall_precision=overall_precision,
        overall_recall=overall_recall,
        of1=_harmonic_mean(overall_precision, overall_recall),
    )


def _ratio(part: int, whole: int) -> float:
    """Part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0


def _harmonic_mean(first: float, second: float) -> float:
    """Harmonic mean, 0 if both are."""
    return 2 * first * second / (first + second) if first + second else 0.0
