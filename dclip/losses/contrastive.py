"""Objectives that compare images with texts, and foregrounds with backgrounds."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def sidm_loss(similarity: Float[Tensor, "pairs pairs"]) -> Float[Tensor, ""]:
    """SmartCLIP's "same image, different masks": each image finds its caption among the masked.

    Args:
        similarity: Scaled cosine of image i with caption j behind the mask of caption j; captions
            belong to the images of their places.

    Returns:
        The mean cross-entropy of the rows, in nats.

    References:
        SmartCLIP, equations as in its authors' code.
    """
    return F.cross_entropy(similarity, _own_places(similarity))


def dism_loss(similarity: Float[Tensor, "pairs pairs"]) -> Float[Tensor, ""]:
    """SmartCLIP's "different images, same mask": each caption finds its image behind its mask.

    Args:
        similarity: As in :func:`sidm_loss`, of which it is the loss of the columns.

    Returns:
        The mean cross-entropy of the columns, in nats.
    """
    return F.cross_entropy(similarity.mT, _own_places(similarity))


def own_place_loss(similarity: Float[Tensor, "rows pairs"], *, first: int = 0) -> Float[Tensor, ""]:
    """What :func:`sidm_loss` takes the mean of, of some of the rows, summed.

    Args:
        similarity: Scaled cosines of some images with all captions, or the other way round.
        first: Place, among all pairs, of the first of the rows.

    Returns:
        The sum of the cross-entropies of the rows, in nats; 0 of no row.
    """
    places = first + torch.arange(len(similarity), device=similarity.device)
    return F.cross_entropy(similarity, places, reduction="sum")


def sparsity(masks: Float[Tensor, "*masks dim"]) -> Float[Tensor, ""]:
    """Mean magnitude of masks over all their dimensions: the share that hard ones leave open."""
    return masks.abs().mean()


def triplet_loss(
    anchors: Float[Tensor, "*rows dim"],
    positives: Float[Tensor, "*rows dim"],
    negatives: Float[Tensor, "*rows dim"],
    *,
    margin: float = 1.5,
) -> Float[Tensor, "*rows"]:
    r"""DAPT's L_v: how much an anchor is not nearer to its positive than to its negative.

    With unit vectors, :math:`\max(0, |x - f + \epsilon| - |x - b + \epsilon| + \text{margin})`.
    Only the anchors take a gradient.

    Args:
        anchors: Features of any length.
        positives: What each is drawn to.
        negatives: What each is driven from.
        margin: Least difference of the two distances that costs nothing; these are at most 2.

    Returns:
        The loss of each row, in [0, 2 + margin].

    References:
        DAPT, T-PAMI 2025, arXiv:2508.00395, as in its authors' code (margin 1.5, epsilon 1e-6).
    """
    x, f, b = (F.normalize(each, dim=-1) for each in (anchors, positives, negatives))
    near, far = (torch.linalg.vector_norm(x - y.detach() + 1e-6, dim=-1) for y in (f, b))
    return F.relu(near - far + margin)


def self_labelled_loss(logits: Float[Tensor, "*rows texts"]) -> Float[Tensor, "*rows"]:
    """DAPT's L_b: cross-entropy of each row with the text that it is most like, whichever it is.

    Args:
        logits: Scaled cosines.

    Returns:
        The loss of each row in nats, at most the logarithm of the number of texts.
    """
    return -logits.log_softmax(dim=-1).amax(dim=-1)


def _own_places(similarity: Float[Tensor, "pairs pairs"]) -> Tensor:
    return torch.arange(len(similarity), device=similarity.device)
