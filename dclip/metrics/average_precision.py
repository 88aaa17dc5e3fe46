"""Average precision: how well scores rank the images that show a class above the others.

Images of equal score are one threshold: they enter the ranking together. The value therefore does
not depend on the order of the images, and equals scikit-learn's ``average_precision_score``. The
evaluation code of DualCoOp and DCLIP sorts instead and takes ties in the order in which the sort
leaves them; without ties both conventions agree, with ties that one depends on the order of images.
"""

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor


def average_precision(
    scores: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
) -> Float64[Tensor, " classes"]:
    r"""Area under the precision-recall steps of each class, not interpolated.

    With precision :math:`P_k` and recall :math:`R_k` at the k-th highest distinct score,

    .. math::
        \mathrm{AP} = \sum_k (R_k - R_{k-1}) P_k

    Args:
        scores: Anything that ranks; higher means more likely present.
        labels: Entries 1 (present), 0 (absent) or -1 (unknown: the image is left out for that
            class).

    Returns:
        AP in [0, 1] per class; ``nan`` for a class without a present image.

    Raises:
        ValueError: If the shapes differ, a score is ``nan``, or a label is none of 1, 0, -1.

    References:
        Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010, section 4.2,
        for the curve. Not the 11-point average of VOC2007: see :func:`ap_11_point`.

    Example:
        >>> scores = torch.tensor([[0.9], [0.8], [0.7]])
        >>> average_precision(scores, torch.tensor([[1], [0], [1]]))
        tensor([0.8333], dtype=torch.float64)
    """
    is_present, precision, _ = _curves(scores, labels)
    num_present = is_present.sum(dim=0)
    # Each present image adds 1/num_present of recall at its own threshold; 0/0 gives nan.
    return (is_present * precision).sum(dim=0) / num_present


def mean_average_precision(
    scores: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
) -> float:
    """Mean of :func:`average_precision` over the classes that have a present image.

    Args:
        scores: Anything that ranks; higher means more likely present.
        labels: Entries 1 (present), 0 (absent) or -1 (unknown).

    Returns:
        mAP in [0, 1].

    Raises:
        ValueError: As :func:`average_precision`, and if no class has a present image.

    Example:
        >>> mean_average_precision(torch.eye(3), torch.eye(3))
        1.0
    """
    per_class = average_precision(scores, labels)
    is_defined = ~per_class.isnan()
    if not is_defined.any():
        raise ValueError(
            f"no class is present in any of the {labels.shape[0]} images, so mAP is undefined; "
            "check the labels"
        )
    return per_class[is_defined].mean().item()


def ap_11_point(
    scores: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
) -> Float64[Tensor, " classes"]:
    """VOC2007's interpolated AP: the best precision at or beyond recall 0, 0.1, ..., 1, averaged.

    Args:
        scores: Anything that ranks; higher means more likely present.
        labels: Entries 1 (present), 0 (absent) or -1 (unknown: the image is left out for that
            class).

    Returns:
        Interpolated AP in [0, 1] per class; ``nan`` for a class without a present image.

    Raises:
        ValueError: As :func:`average_precision`.

    References:
        Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010, section 4.2.

    Example:
        >>> scores = torch.tensor([[0.9], [0.8], [0.7]])
        >>> ap_11_point(scores, torch.tensor([[1], [0], [1]]))
        tensor([0.8485], dtype=torch.float64)
    """
    is_present, precision, found = _curves(scores, labels)
    num_present = is_present.sum(dim=0)
    total = torch.zeros_like(num_present)
    for tenths in range(11):
        # In whole numbers, since 3 * 0.1 is not 0.3.
        is_reached = 10 * found >= tenths * num_present
        best = torch.where(is_reached, precision, 0).amax(dim=0) if len(scores) else total
        total = total + best
    return torch.where(num_present > 0, total / 11, torch.nan)


def _curves(
    scores: Tensor, labels: Tensor
) -> tuple[
    Float64[Tensor, "images classes"],
    Float64[Tensor, "images classes"],
    Float64[Tensor, "images classes"],
]:
    """By descending score: presence, and precision and present images found at that threshold."""
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            "expected scores and labels [images, classes], got "
            f"{list(scores.shape)} and {list(labels.shape)}"
        )
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} scores are nan; they cannot be ranked")
    is_valid = (labels == 1) | (labels == 0) | (labels == -1)
    if not is_valid.all():
        raise ValueError(
            "labels must be 1 (present), 0 (absent) or -1 (unknown), got "
            f"{labels[~is_valid][0].item()}"
        )
    num_images = scores.shape[0]
    ranked, order = scores.sort(dim=0, descending=True)
    is_present = (labels == 1).gather(0, order).double()
    is_known = (labels != -1).gather(0, order).double()

    # Everything of one score counts at the last of its ranks.
    ranks = torch.arange(num_images, device=scores.device)[:, None].expand_as(ranked)
    is_last = torch.ones_like(ranked, dtype=torch.bool)
    is_last[:-1] = ranked[:-1] != ranked[1:]
    last_rank = torch.where(is_last, ranks, num_images).flip(0).cummin(dim=0).values.flip(0)

    found = is_present.cumsum(dim=0).gather(0, last_rank)
    seen = is_known.cumsum(dim=0).gather(0, last_rank)
    return is_present, found / seen.clamp(min=1), found


def precision_recall(
    scores: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    points: int = 101,
) -> tuple[list[float], list[float]]:
    """Recall and precision of all pairs of an image and a class together, as a threshold falls.

    Args:
        scores: The larger, the likelier; of one scale over all classes.
        labels: Entries 1 (present), 0 (absent) or -1 (unknown: not counted).
        points: Thresholds, evenly among the pairs that are positive.

    Returns:
        Recall, rising, and precision at each; both empty without a positive.

    Example:
        >>> precision_recall(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[1, 0, 1]]), points=2)
        ([0.5, 1.0], [1.0, 0.6666666666666666])
    """
    known = labels >= 0
    order = scores[known].double().argsort(descending=True, stable=True)
    hits = (labels[known][order] == 1).cumsum(0).double().cpu()
    positives = int(hits[-1]) if len(hits) else 0
    if not positives:
        return [], []
    wanted = torch.linspace(1, positives, min(points, positives), dtype=torch.float64).round()
    ranks = torch.searchsorted(hits, wanted)
    return (hits[ranks] / positives).tolist(), (hits[ranks] / (ranks + 1)).tolist()
