"""Whether a probability of presence is how often the class is there."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class Reliability(NamedTuple):
    """Pairs of an image and a class that are known, sorted into bins by their probability.

    Attributes:
        counts: Pairs in each bin.
        probabilities: Mean probability in each bin; nan where there is none.
        shares: Share of its pairs that are positive; nan where there is none.
    """

    counts: list[int]
    probabilities: list[float]
    shares: list[float]


def reliability(
    probabilities: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    bins: int = 15,
) -> Reliability:
    """How often classes are there that are said to be there with a probability.

    Args:
        probabilities: Probabilities of presence in [0, 1].
        labels: Entries 1 (present), 0 (absent) or -1 (unknown: not counted).
        bins: Number of bins of equal width, each with its upper end, the first with 0 as well.

    Raises:
        ValueError: As of :func:`expected_calibration_error`.

    Example:
        >>> reliability(torch.tensor([[0.75, 0.25]]), torch.tensor([[1, 0]]), bins=2).shares
        [0.0, 1.0]
    """
    given, present, places = _binned(probabilities, labels, bins)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64).index_add_(0, places, values)

    counts = summed(torch.ones_like(given))
    return Reliability(
        counts.long().tolist(),
        (summed(given) / counts).tolist(),
        (summed(present) / counts).tolist(),
    )


def _binned(
    probabilities: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    bins: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of each known pair, whether it is positive, and its bin; on the CPU."""
    if probabilities.shape != labels.shape:
        raise ValueError(
            f"probabilities {list(probabilities.shape)} and labels {list(labels.shape)} differ"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    is_known = labels >= 0
    given = probabilities[is_known].double().cpu()
    present = (labels[is_known] == 1).double().cpu()
    if not ((given >= 0) & (given <= 1)).all():  # nan is neither
        raise ValueError("probabilities must lie in [0, 1]")
    ends = torch.arange(1, bins, dtype=torch.float64) / bins
    return given, present, torch.bucketize(given, ends)


def expected_calibration_error(
    probabilities: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    bins: int = 15,
) -> float:
    r"""Expected calibration error (ECE) over all pairs of an image and a class that are known.

    Pairs are sorted into bins of equal width by their probability, each with its upper end,
    :math:`((b - 1) / B, b / B]`, the first with 0 as well. With :math:`\bar p_b` the mean
    probability in a bin and :math:`\bar y_b` the share of its pairs that are positive,

    .. math::
        \mathrm{ECE} = \sum_b \frac{n_b}{n} \, | \bar p_b - \bar y_b |

    Each class of each image is a yes-or-no question of its own, so that negatives, of which there
    are many, weigh most. Where all probabilities are alike, it tells of the mean alone.

    Args:
        probabilities: Probabilities of presence in [0, 1].
        labels: Entries 1 (present), 0 (absent) or -1 (unknown: not counted).
        bins: Number of bins B, at least 1.

    Returns:
        In [0, 1]; nan if no label is known.

    Raises:
        ValueError: If the shapes differ, there are no bins, or a probability is nan or outside
            [0, 1].

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, there of the
        class that is predicted.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.75, 0.25]]), torch.tensor([[1, 0]]))
        0.25
    """
    given, present, places = _binned(probabilities, labels, bins)
    if not len(given):
        return math.nan
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, places, given - present)
    return float(gaps.abs().sum()) / len(given)
