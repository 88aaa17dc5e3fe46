"""Asymmetric loss (ASL) on pairs of logits, or on one polarity of them."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from dclip.precision import at_least_float32

PROBABILITY_FLOOR = 1e-6
"""Probabilities below it count as it, so that no single error costs more than 13.8 nats."""

OPTIMISED_FLOOR = 1e-8
"""The same of the form ``optimised``: 18.4 nats."""

Form = Literal["pair", "sigmoid_positive", "sigmoid_negative", "optimised"]
"""What says that a class is there: the softmax over its pair, or the sigmoid of one of the two.

``optimised`` is ``sigmoid_positive`` as the loss was published: its weight is differentiated, too,
and the floor of the probabilities is :data:`OPTIMISED_FLOOR`.
"""

WeightGradient = Literal["detached", "differentiated"]
"""Whether the focusing weight is a constant to the gradient, or takes part in it."""


def asymmetric_loss(
    pair_logits: Float[Tensor, "*members images 2 classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    gamma_neg: float = 2.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    reduction: Literal["sum", "mean"] = "sum",
    form: Form = "pair",
    weight_gradient: WeightGradient = "detached",
) -> Float[Tensor, "*members"]:
    r"""Cross-entropy of each pair, in which easy negatives fade faster than easy positives.

    With the pair's softmax :math:`p^+ = 1 - p^- = \sigma(s^+ - s^-)`, the shifted
    :math:`\tilde p^- = \min(p^- + c, 1)`, and :math:`[x]` a value held constant in the gradient,

    .. math::
        L = -\sum_{i,c} \left\{ y \, [1 - p^+]^{\gamma_+} \log p^+
            + (1 - y) \, [1 - \tilde p^-]^{\gamma_-} \log \tilde p^- \right\}

    where the logarithms see probabilities of at least :data:`PROBABILITY_FLOOR`. Without focus
    and clip it is binary cross-entropy with logits :math:`s^+ - s^-`.

    The other forms look at one polarity: :math:`p^+ = \sigma(s^+)` for ``sigmoid_positive``,
    :math:`p^- = \sigma(s^-)` for ``sigmoid_negative``. The other logit has no part in the loss.

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
        form: What says that a class is there (:data:`Form`). Unknown labels are left out in all of
            them; the authors of DualCoOp do so in the pair form alone, and their other forms would
            take -1 for a number.
        weight_gradient: ``"differentiated"`` lets the weights :math:`[\cdot]^\gamma` take part in
            the gradient, with exponents of 0, or 1 and more.

    Returns:
        The loss in nats, of each member; 0 where no label is known.

    Raises:
        ValueError: If the shapes do not match, a label is none of 1, 0, -1, an exponent is
            negative, or between 0 and 1 where the weight is differentiated, ``clip`` lies outside
            [0, 1), or reduction, form or gradient is unknown.

    References:
        Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021,
        arXiv:2009.14119 (on one sigmoid per class); on the softmax of a pair in Sun et al.,
        "DualCoOp", NeurIPS 2022, arXiv:2206.09541, and Rawlekar et al., arXiv:2502.02977.

    Example:
        >>> asymmetric_loss(torch.zeros(1, 2, 2), torch.tensor([[1.0, 0.0]]))
        tensor(0.4676)
    """
    _check(pair_logits, labels, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    check_labels(labels)
    for value, known in ((form, Form), (weight_gradient, WeightGradient)):
        if value not in get_args(known):
            raise ValueError(f"{value!r} is none of {', '.join(get_args(known))}")
    check_exponents(
        gamma_neg=gamma_neg, gamma_pos=gamma_pos, form=form, weight_gradient=weight_gradient
    )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    total = summed_asymmetric_loss(
        pair_logits,
        labels,
        gamma_neg=gamma_neg,
        gamma_pos=gamma_pos,
        clip=clip,
        form=form,
        weight_gradient=weight_gradient,
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
    form: Form = "pair",
    weight_gradient: WeightGradient = "detached",
) -> Float[Tensor, "*members"]:
    """:func:`asymmetric_loss` of arguments that were checked: it never waits for the device."""
    margin = presence_logit(pair_logits, form=form)
    floor = OPTIMISED_FLOOR if form == "optimised" else PROBABILITY_FLOOR
    absence = torch.sigmoid(-margin)
    shifted_absence = (absence + clip).clamp(max=1)

    log_presence = F.logsigmoid(margin).clamp(min=math.log(floor))
    if clip == 0:
        # The logarithm of a rounded probability would lose the gradient of confident absence.
        log_absence = F.logsigmoid(-margin).clamp(min=math.log(floor))
    else:
        log_absence = shifted_absence.clamp(min=floor).log()

    # 1 - p+ is p-, which keeps its digits where p+ rounds to 1.
    distance_present, distance_absent = absence, 1 - shifted_absence
    if not is_differentiated(form, weight_gradient):
        distance_present, distance_absent = distance_present.detach(), distance_absent.detach()
    focus_present = distance_present**gamma_pos
    focus_absent = distance_absent**gamma_neg
    losses = -torch.where(labels == 1, focus_present * log_presence, focus_absent * log_absence)
    return torch.where(labels != -1, losses, 0).sum(dim=(-2, -1))


def presence_logit(
    pair_logits: Float[Tensor, "*axes 2 classes"], *, form: Form = "pair"
) -> Float[Tensor, "*axes classes"]:
    """Log-odds that a class is there, in the words of a form; half precision in float32."""
    absent, present = at_least_float32(pair_logits).unbind(-2)
    match form:
        case "pair":
            return present - absent
        case "sigmoid_negative":
            return -absent
        case _:
            return present


def is_differentiated(form: Form, weight_gradient: WeightGradient) -> bool:
    """Whether the focusing weight takes part in the gradient."""
    return form == "optimised" or weight_gradient == "differentiated"


def check_exponents(
    *, gamma_neg: float, gamma_pos: float, form: Form, weight_gradient: WeightGradient
) -> None:
    """Refuse exponents whose weight has no finite gradient.

    Raises:
        ValueError: One lies between 0 and 1 where the weight is differentiated.
    """
    for name, gamma in (("gamma_neg", gamma_neg), ("gamma_pos", gamma_pos)):
        if 0 < gamma < 1 and is_differentiated(form, weight_gradient):
            raise ValueError(
                f"{name}={gamma:g} has no finite gradient where the weight is differentiated; use "
                "0, or 1 and more, or a detached weight"
            )


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
