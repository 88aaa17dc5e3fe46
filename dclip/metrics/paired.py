"""Two systems of the same seeds: their mean difference, and how sure it is."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Sequence[float], *, confidence: float = 0.95) -> Interval:
    r"""Mean of paired differences with Student's confidence interval.

    Of n differences with mean :math:`\bar d` and sample standard deviation s, it is
    :math:`\bar d \pm t_{n-1} \, s / \sqrt n`. What a pair has in common, such as the draw of the
    data, is no part of s.

    Args:
        differences: One a pair, at least two.
        confidence: Probability that the interval holds the mean of all such differences, in (0, 1),
            where these are normally distributed.

    Raises:
        ValueError: There are fewer than two differences, or the confidence is out of range.

    Example:
        >>> [round(value, 3) for value in paired_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    if len(differences) < 2:
        raise ValueError(f"an interval takes two differences at least, got {len(differences)}")
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = student_quantile(len(differences) - 1, confidence=confidence) * error
    return Interval(mean, mean - half, mean + half)


def student_quantile(freedom: int, *, confidence: float = 0.95) -> float:
    """The t within which Student's variable lies, to either side of 0, with a probability.

    Args:
        freedom: Degrees of freedom, at least 1.
        confidence: The probability, in (0, 1).

    Raises:
        ValueError: An argument is out of range.

    References:
        Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"no quantile of {confidence} with {freedom} degrees of freedom")
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # halves of an angle: as fine as a float can be
        middle = (low + high) / 2
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Probability of lying within the root of the degrees of freedom times the angle's tangent."""
    cosine = math.cos(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = 0.0
    for power in range(1 if is_odd else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
