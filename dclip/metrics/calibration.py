"""Whether a probability of presence is how often the class is there."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


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
    if probabilities.shape != labels.shape:
        raise ValueError(
            f"probabilities {list(probabilities.shape)} and labels {list(labels.shape)} differ"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    is_known = labels >= 0
    given, present = probabilities[is_known].double(), (labels[is_known] == 1).double()
    if not ((given >= 0) & (given <= 1)).all():  # nan is neither
        raise ValueError("probabilities must lie in [0, 1]")
    if not len(given):
        return math.nan
    ends = torch.arange(1, bins, dtype=torch.float64, device=given.device) / bins
    places = torch.bucketize(given, ends)
    gaps = torch.zeros(bins, dtype=torch.float64, device=given.device)
    gaps.index_add_(0, places, given - present)
    return float(gaps.abs().sum()) / len(given)
