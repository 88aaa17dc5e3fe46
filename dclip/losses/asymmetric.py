"""Asymmetric loss (ASL) on pairs of logits."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from dclip.precision import at_least_float32

PROBABILITY_FLOOR = 1e-6
"""Probabilities below it count as it, so that no single error costs more than 13.8 nats."""


def asymmetric_loss(
    pair_logits: Float[Tensor, "*members images 2 classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    gamma_neg: float = 2.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, "*members"]:
    r"""Cross-entropy of each pair, in which easy negatives fade faster than easy positives.

    With the pair's softmax :math:`p^+ = 1 - p^- = \sigma(s^+ - s^-)`, the shifted
    :math:`\tilde p^- = \min(p^- + c, 1)`, and :math:`[x]` a value held constant in the gradient,

    .. math::
        L = -\sum_{i,c} \left\{ y \, [1 - p^+]^{\gamma_+} \log p^+
            + (1 - y) \, [1 - \tilde p^-]^{\gamma_-} \log \tilde p^- \right\}

    where the logarithms see probabilities of at least :data:`PROBABILITY_FLOOR`. Without focus
    and clip it is binary cross-entropy with logits :math:`s^+ - s^-`.

    Args:
        pair_logits: Index 0 of the last axis but one is the absence logit :math:`s^-`, index 1
            the presence logit :math:`s^+`. Half precision is computed in float32. Leading axes are
            members on the same images.
        labels: Label vectors :math:`y`, entries 1 (present), 0 (absent) or -1 (unknown; the entry
            costs nothing and has no gradient).
        gamma_neg: Focusing exponent :math:`\gamma_-` of the absent classes, at least 0.
        gamma_pos: Focusing exponent :math:`\gamma_+` of the present classes, at least 0.
        clip: Probability margin :math:`c` in [0, 1); absent classes below it cost nothing.
        reduction: ``"sum"`` over images and classes, as published, or ``"mean"`` over the known
            labels.

    Returns:
        The loss in nats, of each member; 0 where no label is known.

    Raises:
        ValueError: If the shapes do not match, a label is none of 1, 0, -1, an exponent is
            negative, ``clip`` lies outside [0, 1), or the reduction is unknown.

    References:
        Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021,
        arXiv:2009.14119 (on one sigmoid per class); here on the softmax of a pair, as in Rawlekar
        et al., arXiv:2502.02977.

    Example:
        >>> asymmetric_loss(torch.zeros(1, 2, 2), torch.tensor([[1.0, 0.0]]))
        tensor(0.4676)
    """
    _check(pair_logits, labels, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    check_labels(labels)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    total = summed_asymmetric_loss(
        pair_logits, labels, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip
    )
    if reduction == "mean":
        total = total / (labels != -1).sum().clamp(min=1)
    return total


def summed_asymmetric_loss(
    pair_logits: Float[Tensor, "*members images 2 classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    gamma_neg: float,
    gamma_pos: float,
    clip: float,
) -> Float[Tensor, "*members"]:
    """:func:`asymmetric_loss` of arguments that were checked: it never waits for the device."""
    absent, present = at_least_float32(pair_logits).unbind(-2)
    margin = present - absent
    absence = torch.sigmoid(-margin)
    shifted_absence = (absence + clip).clamp(max=1)

    log_presence = F.logsigmoid(margin).clamp(min=math.log(PROBABILITY_FLOOR))
    if clip == 0:
        # The logarithm of a rounded probability would lose the gradient of confident absence.
        log_absence = F.logsigmoid(-margin).clamp(min=math.log(PROBABILITY_FLOOR))
    else:
        log_absence = shifted_absence.clamp(min=PROBABILITY_FLOOR).log()

    # 1 - p+ is p-, which keeps its digits where p+ rounds to 1.
    focus_present = absence.detach() ** gamma_pos
    focus_absent = (1 - shifted_absence.detach()) ** gamma_neg
    losses = -torch.where(labels == 1, focus_present * log_presence, focus_absent * log_absence)
    return torch.where(labels != -1, losses, 0).sum(dim=(-2, -1))


def check_labels(labels: Shaped[Tensor, "images classes"]) -> None:
    """Refuse labels other than present, absent and unknown.

    Raises:
        ValueError: A label is none of 1, 0, -1.
    """
    is_valid = (labels == 1) | (labels == 0) | (labels == -1)
    if not is_valid.all():
        raise ValueError(
            "labels must be 1 (present), 0 (absent) or -1 (unknown), got "
            f"{labels[~is_valid][0].item()}"
        )


def _check(
    pair_logits: Tensor, labels: Tensor, *, gamma_neg: float, gamma_pos: float, clip: float
) -> None:
    """Refuse what would otherwise broadcast, or focus the wrong way."""
    if labels.ndim != 2 or pair_logits.shape[-3:] != (len(labels), 2, labels.shape[1]):
        raise ValueError(
            "expected pair_logits [..., images, 2, classes] and labels [images, classes], got "
            f"{list(pair_logits.shape)} and {list(labels.shape)}"
        )
    if not (gamma_neg >= 0 and gamma_pos >= 0):
        raise ValueError(
            f"focusing exponents must be at least 0, got gamma_neg={gamma_neg}, "
            f"gamma_pos={gamma_pos}"
        )
    if not 0 <= clip < 1:
        raise ValueError(f"clip must lie in [0, 1), got {clip}")
