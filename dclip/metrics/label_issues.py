"""Labels that scores of other images speak against: confident learning, class by class."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

_ROUNDING = 1e-6


class Confidence(NamedTuple):
    r"""How sure the scores have to be of each class; nan where no label says it.

    Attributes:
        present: :math:`t_1`, the mean probability where the class is labelled present.
        absent: :math:`t_0`, the mean of one less the probability where it is labelled absent.
    """

    present: Float[Tensor, " classes"]
    absent: Float[Tensor, " classes"]


def confidence_of(
    probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, "images classes"]
) -> Confidence:
    """Thresholds of each class, from what its labels get on average.

    Args:
        probabilities: That each class is there, by something that did not see the image's labels.
        labels: 1 (present), 0 (absent) or -1 (unknown).

    Raises:
        ValueError: A probability is none.
    """
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    values = probabilities.double()

    def mean(of: Tensor, where: Tensor) -> Tensor:
        return (of * where).sum(0) / where.sum(0)  # 0 / 0 is nan

    return Confidence(mean(values, labels == 1), mean(1 - values, labels == 0))


def sure_labels(
    probabilities: Float[Tensor, "images classes"], confidence: Confidence
) -> Int[Tensor, "images classes"]:
    """What scores are sure of: 1 (present), 0 (absent), or -1 where they are of neither.

    A class is present where its probability is as large as on average of images that are labelled
    with it; absent likewise; and what is likelier where both holds. Nothing is sure of a class of
    which all known labels are alike.
    """
    values = probabilities.double()
    is_present = values >= confidence.present - _ROUNDING
    is_absent = 1 - values >= confidence.absent - _ROUNDING
    guess = torch.where(is_present & is_absent, values > 0.5, is_present)
    known = ~(confidence.present.isnan() | confidence.absent.isnan())
    is_sure = (is_present | is_absent) & known
    return torch.where(is_sure, guess.to(torch.int8), torch.tensor(-1, dtype=torch.int8))


class LabelIssues(NamedTuple):
    """Labels that are likely wrong, the likeliest first.

    Attributes:
        rows: Of the images.
        columns: Of the classes.
        given: What the label says: 1 is likely wrong, 0 likely a label that is missing.
        probabilities: Of what the label says, by the scores.
    """

    rows: Int64[np.ndarray, " issues"]
    columns: Int64[np.ndarray, " issues"]
    given: Int[np.ndarray, " issues"]
    probabilities: Float[np.ndarray, " issues"]


def label_issues(
    probabilities: Float[Tensor, "images classes"],
    labels: Int[Tensor, "images classes"],
) -> LabelIssues:
    r"""Labels whose opposite the scores are sure of: off the diagonal of the confident joint.

    Each class is a question of its own, with two answers. An image counts for an answer :math:`j`
    if its probability of it is at least :math:`t_j`, what images with that label have on average
    (:class:`Confidence`), and for the likelier one where both hold. Where that is not the label
    that is given, the label is an issue. So the scores need not be calibrated: how sure is sure is
    learnt for each class.

    They are ranked by the probability of the label that is given, the least likely first; to
    compare classes by it, probabilities have to be calibrated.

    Args:
        probabilities: That each class is there, by something that did not see the image's labels.
        labels: 1 (present), 0 (absent) or -1 (unknown, which is never an issue).

    Raises:
        ValueError: A probability is none.

    References:
        Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
        JAIR 70, 2021, equations 1 and 2.
    """
    confidence = confidence_of(probabilities, labels)
    sure = sure_labels(probabilities, confidence)
    is_issue = (labels != -1) & (sure != -1) & (sure != labels)
    given = torch.where(labels == 1, probabilities.double(), 1 - probabilities.double())
    rows, columns = (part.numpy() for part in is_issue.nonzero(as_tuple=True))
    found = given[is_issue].numpy()
    order = np.argsort(found, kind="stable")
    return LabelIssues(
        rows[order],
        columns[order],
        labels[is_issue].numpy()[order],
        found[order],
    )
