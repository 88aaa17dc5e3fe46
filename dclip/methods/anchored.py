r"""The start that is CLIP's own, and what the labels say of it before the first step.

A few hundred photographs say little of a class beyond what CLIP knows. Two projectors that start by
chance, or where a class's two prompts are nearly one text, first lose what CLIP knows and then
find some of it again. Anchored projectors start where frozen CLIP is: in a space that keeps the
cosines of the class texts, at its own ranking. This form is ours.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from dclip.fitting.batches import FeatureSource, clean_batches, evenly
from dclip.logits import pooled_similarity
from dclip.model import DCLIP

SHARE_PRIOR = 3.0
"""How many images' worth of doubt there is that the absence text counts less than CLIP's own."""

RATE_PRIOR = 2.0
"""How many images of the mean class each class has seen before its own."""

START_BIAS = 40.0
"""Of every class before labels are seen: no class is likely, and float32 keeps their order."""

_MOST_STEPS = 50


@torch.no_grad()
def anchor(model: DCLIP, texts: Float[Tensor, "classes dim"]) -> None:
    """Let anchored projectors say what CLIP says.

    The image projector becomes an orthonormal map whose rows hold the span of the class texts (its
    largest directions, where there are more classes than rows), turned by chance; the text
    projector's skip is the same, and what it adds is 0. BatchNorm's variance is that of the hidden
    layer over the class texts, and what the hidden layer says on average is taken off. One text of
    absence, the mean of all classes, serves all.

    Args:
        model: Fresh anchored projectors, changed in place.
        texts: Text features of the classes, of any length.
    """
    unit = F.normalize(texts.float(), dim=-1)
    text, rows = model.text_projector, model.sizes.output_dim
    _, _, directions = torch.linalg.svd(unit.double(), full_matrices=False)
    kept = directions[: min(rows, len(unit))]
    random = torch.randn(rows, unit.shape[1], dtype=torch.float64)
    # the first rows are the span of the texts, the others what is left of random ones
    basis = torch.linalg.qr(torch.cat([kept, random[len(kept) :]]).T)[0].T
    turn = torch.linalg.qr(torch.randn(len(basis), len(basis), dtype=torch.float64))[0]
    start = (turn @ basis).float()
    # of fewer dimensions than rows, the others say nothing
    text.skip.zero_()
    text.skip[: len(start)] = start
    model.image_projector.output.weight.copy_(text.skip)
    model.absent.copy_(F.normalize((unit @ text.skip.T).mean(0), dim=0))
    model.bias.fill_(START_BIAS)
    text.output.weight.zero_()
    text.batch_norm.weight.fill_((2 / model.sizes.hidden_dim) ** 0.5)
    if len(unit) > 1:  # one class has no mean to be told from
        text.centre.copy_(unit.mean(0))
        deviation = text.hidden(unit - text.centre).std(0)
        assert text.batch_norm.running_var is not None
        text.batch_norm.running_var.copy_(torch.where(deviation > 1e-6, deviation**2, 1.0))
        changed = text.batch_norm(text.hidden(unit - text.centre))
        text.resting.copy_(F.relu(changed).mean(0))


def for_classes(model: DCLIP, own: Sequence[int | None]) -> DCLIP:
    """The same weights, shared, asked of other classes.

    Args:
        model: Of any form; what is not anchored is of no classes, and is given back.
        own: Of each class asked for its number among those that it is anchored to; None for
            others, which get the mean of their biases.
    """
    if not model.is_anchored:
        return model
    other = copy.copy(model)
    mean = model.bias.mean()
    bias = torch.stack([mean if number is None else model.bias[number] for number in own])
    other.__dict__["_buffers"] = {**model._buffers, "bias": bias}
    return other


class Calibration(NamedTuple):
    """What labels say before the first step.

    Attributes:
        absent_share: How much the text of absence counts, rho.
        absent_mean: Its mean score on the training images, m.
        bias: Of each class, b.
    """

    absent_share: Float[Tensor, ""]
    absent_mean: Float[Tensor, ""]
    bias: Float[Tensor, " classes"]


@torch.no_grad()
def calibrate(
    model: DCLIP,
    texts: Float[Tensor, "classes dim"],
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
) -> None:
    """Fit absence share, mean and biases of fresh anchored projectors to training images.

    Args:
        model: Anchored, as :func:`anchor` leaves it; changed in place.
        texts: Text features of its classes.
        features: Training features; their clean view is looked at.
        rows: Training images; of very many, a part that lies evenly among them.
    """
    asked = torch.cat([model.project_texts(texts, statistics="running"), model.absent[None]])
    rows = evenly(rows, len(texts))
    scores = [
        pooled_similarity(
            model.project_images(batch.local),
            asked,
            local_scale=model.local_scale,
            pooled_scale=model.pooled_scale,
        ).cpu()
        for batch in clean_batches(features, rows, texts.device, 256)
    ]
    found_scores = torch.cat(scores).double()
    found = fit_calibration(found_scores[:, :-1], found_scores[:, -1], features.labels[rows].cpu())
    model.absent_share.copy_(found.absent_share)
    model.absent_mean.copy_(found.absent_mean)
    model.bias.copy_(found.bias)


def fit_calibration(
    present: Float[Tensor, "images classes"],
    absent: Float[Tensor, " images"],
    labels: Shaped[Tensor, "images classes"],
) -> Calibration:
    r"""The share of absence that the labels ask for, and biases that make probabilities of scores.

    With :math:`z_{ic} = p_{ic} - \rho (a_i - m) - b_c`, :math:`\rho` and :math:`b` minimise

    .. math::
        \frac1N \sum_{ic} \mathrm{BCE}(z_{ic}, y_{ic}) + \frac{2}{N} \sum_c \mathrm{BCE}(\bar z_c,
        \bar y) + \frac{3}{2} (\rho - 1)^2

    over known labels, so that :math:`\rho` is 1 where little is known. Then each :math:`b_c` is
    such that the mean probability of the class is how often it is there,
    :math:`(n_c + 2 \bar y) / (M_c + 2)`.

    Args:
        present: Scores of the classes, p.
        absent: Scores of absence, a.
        labels: 1, 0, or -1 for unknown.
    """
    known, wanted = (labels != -1).double(), (labels == 1).double()
    classes = present.shape[1]
    rate = wanted.sum() / known.sum().clamp(min=1)
    mean = absent.mean()
    off = (absent - mean)[:, None]

    def objective(share: Tensor, bias: Tensor) -> Tensor:
        logits = present - share * off - bias
        loss = F.binary_cross_entropy_with_logits(logits, wanted, known, reduction="sum")
        centre = present.mean(0) - bias
        loss = loss + RATE_PRIOR * (F.softplus(centre) - rate * centre).sum()
        return loss / classes + SHARE_PRIOR / 2 * (share - 1) ** 2

    share = torch.ones((), dtype=torch.float64)
    bias = _calibrated(present - off, known, wanted, rate)
    now = objective(share, bias)
    for _ in range(_MOST_STEPS):  # Newton's; of the Hessian only one row and the diagonal are full
        chance = torch.sigmoid(present - share * off - bias)
        error, curve = (chance - wanted) * known, chance * (1 - chance) * known
        centre = torch.sigmoid(present.mean(0) - bias)
        by_bias = -(error.sum(0) + RATE_PRIOR * (centre - rate)) / classes
        by_share = -(off * error).sum() / classes + SHARE_PRIOR * (share - 1)
        bias_curve = (curve.sum(0) + RATE_PRIOR * centre * (1 - centre)) / classes
        bias_curve = bias_curve.clamp(min=1e-9)
        mixed = (off * curve).sum(0) / classes
        share_curve = (off.square() * curve).sum() / classes + SHARE_PRIOR
        share_step = by_share - (mixed * by_bias / bias_curve).sum()
        share_step = share_step / (share_curve - (mixed.square() / bias_curve).sum())
        bias_step = (by_bias - mixed * share_step) / bias_curve
        length = 1.0
        while (then := objective(share - length * share_step, bias - length * bias_step)) > now:
            length /= 2
            if length < 1e-6:
                break
        if not then < now:
            break
        share, bias = share - length * share_step, bias - length * bias_step
        now = then
    return Calibration(share, mean, _calibrated(present - share * off, known, wanted, rate))


def _calibrated(scores: Tensor, known: Tensor, wanted: Tensor, rate: Tensor) -> Tensor:
    """Biases that let each class be as probable, on average, as it is often there."""
    count = known.sum(0)
    often = (wanted.sum(0) + RATE_PRIOR * rate) / (count + RATE_PRIOR)
    low, high = scores.amin(0) - 40, scores.amax(0) + 40
    for _ in range(60):  # the mean probability falls as the bias rises
        middle = (low + high) / 2
        means = (torch.sigmoid(scores - middle) * known).sum(0) / count.clamp(min=1)
        is_low = means > often
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    # a class of which no label is known has no bias of its own
    others = middle[count > 0].mean() if (count > 0).any() else scores.mean()
    return torch.where(count > 0, middle, others)
