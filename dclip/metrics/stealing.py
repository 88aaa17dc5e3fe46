"""Which class takes what belongs to another: errors of one where the other is there."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor


class Shares(NamedTuple):
    """How often something is scored wrongly, by whether another class is there.

    The first axis is the class ``a`` that is there or not, the second the class ``b`` that is
    scored.

    Attributes:
        wrong_with: Errors in images that have ``a``.
        with_: Images that have ``a``, of those in which ``b`` can be in error so.
        wrong_without: Errors in images that have not.
        without: Those images.
    """

    wrong_with: Int64[np.ndarray, "classes classes"]
    with_: Int64[np.ndarray, "classes classes"]
    wrong_without: Int64[np.ndarray, "classes classes"]
    without: Int64[np.ndarray, "classes classes"]

    def difference(self) -> Float[np.ndarray, "classes classes"]:
        """Share of errors with ``a`` less that without; nan where either has no image."""
        with np.errstate(invalid="ignore", divide="ignore"):
            values: np.ndarray = self.wrong_with / self.with_ - self.wrong_without / self.without
        return values


class Stealing(NamedTuple):
    """What the presence of one class does to the scores of another.

    Attributes:
        lights: Of images without ``b``: how often it is scored present.
        hides: Of images with ``b``: how often it is scored absent.
    """

    lights: Shares
    hides: Shares


def matched_thresholds(
    scores: Float[Tensor, "images classes"], labels: Int[Tensor, "images classes"]
) -> Float[Tensor, " classes"]:
    """Of each class the threshold that as many known images reach as are labelled with it.

    So precision equals recall, whatever scale the scores have. Infinite for a class without a
    positive.

    Example:
        >>> scores = torch.tensor([[0.1], [0.3], [0.2]])
        >>> matched_thresholds(scores, torch.tensor([[0], [0], [1]]))
        tensor([0.3000])
    """
    thresholds = torch.full_like(scores[0], torch.inf)
    for column in range(scores.shape[1]):
        known = labels[:, column] != -1
        count = int((labels[:, column] == 1).sum())
        if count:
            thresholds[column] = scores[known, column].topk(count).values[-1]
    return thresholds


def stealing(
    found: Bool[Tensor, "images classes"], labels: Int[Tensor, "images classes"]
) -> Stealing:
    """Errors of every class by the presence of every other.

    Args:
        found: Whether each class is scored present.
        labels: 1 (present), 0 (absent) or -1 (unknown: the image does not count for the class).
    """
    present, absent = (labels == 1).double(), (labels == 0).double()

    def shares(wrong: Tensor, of: Tensor) -> Shares:
        sums = (present.mT @ wrong, present.mT @ of, absent.mT @ wrong, absent.mT @ of)
        return Shares(*(one.round().long().numpy() for one in sums))

    scored = found.double()
    return Stealing(shares(scored * absent, absent), shares((1 - scored) * present, present))


def difference_interval(
    shares: Shares,
) -> tuple[Float[np.ndarray, "classes classes"], Float[np.ndarray, "classes classes"]]:
    """95 % interval of `Shares.difference`, by Wilson's intervals of both shares; nan as there.

    References:
        Newcombe, "Interval estimation for the difference between independent proportions",
        Statistics in Medicine 17, 1998, method 10.

    Example:
        >>> counts = (np.array([[count]]) for count in (56, 70, 48, 80))
        >>> [round(float(end[0, 0]), 4) for end in difference_interval(Shares(*counts))]
        [0.0524, 0.3339]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        one, other = shares.wrong_with / shares.with_, shares.wrong_without / shares.without
        low, high = _wilson(one, shares.with_)
        other_low, other_high = _wilson(other, shares.without)
    difference = one - other
    return (
        difference - np.hypot(one - low, other_high - other),
        difference + np.hypot(high - one, other - other_low),
    )


def _wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = 1.959963984540054  # of 95 % of a normal distribution
    middle = share + z * z / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (middle - half) / scale, (middle + half) / scale
