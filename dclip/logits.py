"""Features to logits: cosines, scales, and pooling over locations.

Half-precision features are compared in float32; wider ones keep their dtype. A feature of all
zeros has cosine 0 with everything.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones.gradients import logit_scale_of
from dclip.precision import at_least_float32

LOCAL_SCALE = 20.0
"""Multiplier of the cosine at each location, and so the sharpness of the spatial softmax."""

POOLED_SCALE = 5.0
"""Multiplier of the pooled cosine; with :data:`LOCAL_SCALE`, logits lie in [-100, 100]."""

CLOSED = 1e-20
"""Share of the square of a feature from which on a mask is open."""


def pair_logits(
    image_features: Float[Tensor, "*members images locations dim"],
    text_features: Float[Tensor, "*members pairs dim"],
    *,
    dropped: Bool[Tensor, "images locations"] | None = None,
    local_scale: float = LOCAL_SCALE,
    pooled_scale: float = POOLED_SCALE,
) -> Float[Tensor, "*members images 2 classes"]:
    r"""Absence and presence logit of every class, each pooled where its own prompt fits best.

    With unit features :math:`\hat z_l`, :math:`\hat t_k` and local similarities
    :math:`o_{lk} = a \, \hat z_l \cdot \hat t_k`, every prompt takes its own spatial softmax:

    .. math::
        s_k = b \sum_l w_{lk} \, o_{lk}, \qquad
        w_{lk} = \frac{\exp o_{lk}}{\sum_m \exp o_{mk}}

    Its gradient is taken in closed form, :math:`\partial s_k / \partial o_{lk} = b \, w_{lk}
    (1 + o_{lk} - s_k / b)`, which needs fewer passes over memory than differentiating
    step by step; it can be taken once, not twice.

    Args:
        image_features: Local features, of any length. Leading axes are members that are computed
            together, each with its own texts.
        text_features: Features of the prompt pairs, of any length: first all negative prompts,
            then all positive ones.
        dropped: Locations left out, as if the image did not have them; one at least must stay, or
            the image's logits are nan. Left out: none.
        local_scale: Multiplier :math:`a` of the cosines.
        pooled_scale: Multiplier :math:`b` of the pooled similarity.

    Returns:
        Logits in ``[-a b, a b]``; index 0 of the second axis says absent, index 1 present.

    Raises:
        ValueError: If there is no location, or the number of prompts is odd.

    References:
        Rawlekar et al., "Efficiently Disentangling CLIP for Multi-Object Perception",
        arXiv:2502.02977, appendix B.

    Example:
        >>> pair_logits(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        tensor([[[  0.],
                 [100.]]])
    """
    pooled = _pooled_cosine(image_features, text_features, dropped, local_scale, by_positive=False)
    return _split_pairs(pooled_scale * pooled)


def pooled_similarity(
    image_features: Float[Tensor, "*members images locations dim"],
    text_features: Float[Tensor, "*members texts dim"],
    *,
    dropped: Bool[Tensor, "images locations"] | None = None,
    local_scale: float = LOCAL_SCALE,
    pooled_scale: float = POOLED_SCALE,
) -> Float[Tensor, "*members images texts"]:
    r"""What :func:`pair_logits` says of each text, :math:`s_k`, of texts that are no pairs.

    Args:
        image_features: Local features, of any length.
        text_features: Text features, of any length and number.
        dropped: Locations left out, as in :func:`pair_logits`.
        local_scale: Multiplier of the cosines.
        pooled_scale: Multiplier of the pooled similarity.

    Raises:
        ValueError: If there is no location.
    """
    return pooled_scale * _pooled_cosine(
        image_features, text_features, dropped, local_scale, by_positive=False
    )


def positive_pair_logits(
    image_features: Float[Tensor, "*members images locations dim"],
    text_features: Float[Tensor, "*members pairs dim"],
    *,
    dropped: Bool[Tensor, "images locations"] | None = None,
    local_scale: float = LOCAL_SCALE,
    pooled_scale: float = POOLED_SCALE,
) -> Float[Tensor, "*members images 2 classes"]:
    r"""Absence and presence logit of every class, both pooled where its positive text fits best.

    As :func:`pair_logits`, but the spatial softmax :math:`w_{lk}` of the presence text serves the
    absence text of its class, too. It asks what is said of absence where the class would be.

    Args:
        image_features: Local features, of any length.
        text_features: Text features, of any length: first all of absence, then all of presence.
        dropped: Locations left out, as in :func:`pair_logits`.
        local_scale: Multiplier of the cosines.
        pooled_scale: Multiplier of the pooled similarity.

    Returns:
        Logits in ``[-a b, a b]``; index 0 of the second axis says absent, index 1 present.

    Raises:
        ValueError: If there is no location, or the number of texts is odd.

    References:
        Sun et al., "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations",
        NeurIPS 2022, arXiv:2206.09541, section 3.2.

    Example:
        >>> positive_pair_logits(torch.eye(2)[None], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[[2.0612e-07],
                 [1.0000e+02]]])
    """
    if text_features.shape[-2] % 2:
        raise _odd(text_features.shape[-2])
    pooled = _pooled_cosine(image_features, text_features, dropped, local_scale, by_positive=True)
    return _split_pairs(pooled_scale * pooled)


def pooled_linear_logits(
    scores: Float[Tensor, "*members images locations pairs"],
    *,
    dropped: Bool[Tensor, "images locations"] | None = None,
    pooled_scale: float = POOLED_SCALE,
) -> Float[Tensor, "*members images 2 classes"]:
    """Logits of scores on any scale, each pooled by its own softmax over the locations.

    Args:
        scores: Of every text at every location, absence before presence.
        dropped: Locations left out, as in :func:`pair_logits`.
        pooled_scale: Multiplier of the pooled scores.
    """
    _check_locations(scores)
    seen = scores
    if dropped is not None:
        seen = scores.masked_fill(dropped[:, :, None], -math.inf)
    return _split_pairs(pooled_scale * (seen.softmax(dim=-2) * scores).sum(dim=-2))


def pooled_pair_logits(
    pooled_features: Float[Tensor, "*members images pairs dim"],
    text_features: Float[Tensor, "*members pairs dim"],
    *,
    local_scale: float = LOCAL_SCALE,
    pooled_scale: float = POOLED_SCALE,
) -> Float[Tensor, "*members images 2 classes"]:
    """Logits of features that were pooled beforehand, one for each prompt.

    It is :func:`pair_logits` at a single location, where each prompt brings its own feature.

    Args:
        pooled_features: What each prompt has gathered from the image, of any length.
        text_features: Features of the prompt pairs, of any length, negatives first.
        local_scale: First multiplier of the cosines.
        pooled_scale: Second multiplier of the cosines.

    Returns:
        ``local_scale * pooled_scale * cosine``; index 0 says absent, index 1 present.

    Raises:
        ValueError: If the number of prompts is odd.
    """
    cosines = torch.einsum("...ipd,...pd->...ip", _unit(pooled_features), _unit(text_features))
    return _split_pairs(local_scale * pooled_scale * cosines)


def pool_locations(
    image_features: Float[Tensor, "images locations dim"],
    text_features: Float[Tensor, "pairs dim"],
    *,
    dropped: Bool[Tensor, "images locations"] | None = None,
    local_scale: float = LOCAL_SCALE,
) -> Float[Tensor, "images pairs dim"]:
    """What each text gathers from an image: the mean of unit local features, by spatial softmax.

    Args:
        image_features: Local features, of any length; each location weighs by its direction only.
        text_features: Text features, of any length.
        dropped: Locations left out, as in :func:`pair_logits`.
        local_scale: Sharpness of the spatial softmax.

    Returns:
        One feature per image and text, at most of unit length.

    Raises:
        ValueError: If there is no location.
    """
    _check_locations(image_features)
    unit_features = _unit(image_features)
    similarity = local_scale * (unit_features @ _unit(text_features).mT)
    if dropped is not None:
        similarity = similarity.masked_fill(dropped[:, :, None], -math.inf)
    return similarity.softmax(dim=1).mT @ unit_features


def presence_probability(
    pair_logits: Float[Tensor, "*members images 2 classes"],
) -> Float[Tensor, "*members images classes"]:
    """Probability that a class is present: softmax over its pair.

    Args:
        pair_logits: Logits; index 0 of the last axis but one says absent, index 1 present.

    Returns:
        Probabilities in [0, 1].

    Example:
        >>> presence_probability(torch.tensor([[[1.0], [1.0]]]))
        tensor([[0.5000]])
    """
    # A softmax over two is a sigmoid of the difference, which cannot overflow.
    pair_logits = at_least_float32(pair_logits)
    return torch.sigmoid(pair_logits[..., 1, :] - pair_logits[..., 0, :])


def zero_shot_scores(
    embedding: Float[Tensor, "images dim"],
    class_features: Float[Tensor, "classes dim"],
    *,
    logit_scale: float = 100.0,
) -> Float[Tensor, "images classes"]:
    """CLIP's own scores: scaled cosine of the global image feature and each class feature.

    Args:
        embedding: Global image features, of any length.
        class_features: One text feature per class, of any length.
        logit_scale: Multiplier of the cosines.

    Returns:
        Scores in ``[-logit_scale, logit_scale]``.
    """
    return logit_scale * (_unit(embedding) @ _unit(class_features).mT)


class Sigmoid(NamedTuple):
    """How a CLIP that was trained by a sigmoid (SigLIP) makes a probability of a cosine.

    Attributes:
        scale: Multiplier of the cosine.
        bias: Added to it; negative, so that a cosine has to be well above zero.
    """

    scale: float
    bias: float


def sigmoid_of(backbone: object) -> Sigmoid | None:
    """That of a `dclip.backbones.Backbone`; None for one that was trained by a softmax."""
    bias = getattr(backbone, "logit_bias", None)
    return None if bias is None else Sigmoid(float(logit_scale_of(backbone)), float(bias))


def kept_sigmoid(spec: Mapping[str, Any]) -> Sigmoid | None:
    """That of features, as their manifest has it; None where it does not, or has none.

    Args:
        spec: Of the manifest.
    """
    bias = spec.get("logit_bias")
    return None if bias is None else Sigmoid(float(spec["logit_scale"]), float(bias))


def sigmoid_scores(
    embedding: Float[Tensor, "images dim"],
    class_features: Float[Tensor, "classes dim"],
    sigmoid: Sigmoid,
) -> Float[Tensor, "images classes"]:
    r"""Probability of each class by itself, :math:`\sigma(s \cos + b)`: they need not sum to 1.

    Args:
        embedding: Global image features, of any length.
        class_features: One text feature per class, of any length.
        sigmoid: Of the CLIP that both are of.

    References:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv:2303.15343.

    Example:
        >>> image, texts = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sigmoid_scores(image, texts, Sigmoid(10.0, -7.0))  # of -1 and of 1
        tensor([[0.2689, 0.7311]])
    """
    scores = zero_shot_scores(embedding, class_features, logit_scale=sigmoid.scale)
    return torch.sigmoid(scores + sigmoid.bias)


def similarity_maps(
    image_features: Float[Tensor, "images locations dim"],
    text_features: Float[Tensor, "classes dim"],
) -> Float[Tensor, "images classes locations"]:
    """Cosine of every class with every location.

    Args:
        image_features: Local features, of any length.
        text_features: One text feature per class, of any length.

    Returns:
        Cosines in [-1, 1], ready to be reshaped to the grid of locations.
    """
    return _unit(text_features) @ _unit(image_features).mT


def masked_cosine(
    image_features: Float[Tensor, "*axes dim"],
    text_features: Float[Tensor, "texts dim"],
    masks: Float[Tensor, "texts dim"],
) -> Float[Tensor, "*axes texts"]:
    r"""Cosine of image features, seen through the mask of each text, with that text.

    .. math::
        q_j = \frac{(v \odot m_j) \cdot \hat t_j}{|v \odot m_j|}
            = \frac{v \cdot (m_j \odot \hat t_j)}{\sqrt{v^2 \cdot m_j^2}}

    which takes two matrix products. The text is of unit length before it is masked, as in
    SmartCLIP: what a mask leaves of the image is compared with all of the text.

    Through a mask that is closed nothing is seen, and the cosine is 0. There, where the formula
    has 0 / 0, its gradient is that of :math:`v \cdot (m_j \odot \hat t_j) / |v|`, which opens the
    dimensions in which image and text agree.

    Args:
        image_features: Of any length.
        text_features: Of any length.
        masks: One for each text, entries at least 0.

    Returns:
        Cosines in [-1, 1]; without masks (all ones) those of the features.

    Example:
        >>> v, t = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> masked_cosine(v, t, torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
        tensor([[0.6000, 1.0000, 0.0000]])
    """
    images = at_least_float32(image_features)
    masked_texts = masks * _unit(text_features)
    seen = images.square() @ masks.square().mT
    whole = images.square().sum(-1, keepdim=True)
    square = torch.where(seen <= CLOSED * whole, whole, seen)
    return images @ masked_texts.mT / square.clamp_min(1e-24).sqrt()


def pool_cosines(
    cosines: Float[Tensor, "images classes locations"],
    *,
    dropped: Bool[Tensor, "images locations"] | None = None,
    local_scale: float = LOCAL_SCALE,
) -> Float[Tensor, "images classes"]:
    """Mean cosine over the locations, weighted by the softmax of ``local_scale`` times itself.

    Args:
        cosines: Of every class with every location.
        dropped: Locations left out, as in :func:`pair_logits`.
        local_scale: Sharpness of the softmax.
    """
    weights = location_weights(cosines, dropped=dropped, local_scale=local_scale)
    return (weights * cosines).sum(-1)


def location_weights(
    cosines: Float[Tensor, "images classes locations"],
    *,
    dropped: Bool[Tensor, "images locations"] | None = None,
    local_scale: float = LOCAL_SCALE,
) -> Float[Tensor, "images classes locations"]:
    """Share of each location in what a class gathers: the softmax of :func:`pool_cosines`."""
    seen = local_scale * cosines
    if dropped is not None:
        seen = seen.masked_fill(dropped[:, None, :], -math.inf)
    return seen.softmax(-1)


def _pooled_cosine(
    image_features: Float[Tensor, "*members images locations dim"],
    text_features: Float[Tensor, "*members pairs dim"],
    dropped: Bool[Tensor, "images locations"] | None,
    scale: float,
    *,
    by_positive: bool,
) -> Float[Tensor, "*members images pairs"]:
    """Scaled cosines of locations with texts, pooled by a spatial softmax."""
    images, texts = at_least_float32(image_features), _unit(text_features)
    images = images.to(torch.promote_types(images.dtype, texts.dtype))
    texts = texts.to(images.dtype)
    _check_locations(images)
    members = images.shape[:-3]
    together = math.prod(members)
    pooled: Tensor = _PooledCosine.apply(
        images.reshape(together, *images.shape[-3:]),
        texts.reshape(together, *texts.shape[-2:]),
        dropped,
        scale,
        by_positive,
    )[0]
    return pooled.reshape(*members, *pooled.shape[1:])


class _PooledCosine(torch.autograd.Function):
    """Scaled cosines of locations with unit texts, pooled by a spatial softmax.

    It is each text's own, or, ``by_positive``, that of the second half of the texts for both.
    Besides the pooled cosines it gives what its gradient needs; these have no gradient.
    """

    @staticmethod
    def forward(
        features: Float[Tensor, "members images locations dim"],
        texts: Float[Tensor, "members pairs dim"],
        dropped: Bool[Tensor, "images locations"] | None,
        scale: float,
        by_positive: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min_(1e-12)
        similarity = torch.bmm(features.flatten(1, 2), texts.mT)
        similarity = similarity.view(*features.shape[:3], texts.shape[1])
        similarity *= scale / norms
        seen = similarity.chunk(2, dim=-1)[1] if by_positive else similarity
        if dropped is not None:
            seen = seen.masked_fill(dropped[:, :, None], -math.inf)
        weights = seen.softmax(dim=2)
        if not by_positive:
            return (weights * similarity).sum(dim=2), norms, similarity, weights
        pooled = [(weights * half).sum(dim=2) for half in similarity.chunk(2, dim=-1)]
        return torch.cat(pooled, dim=-1), norms, similarity, weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, texts, _, ctx.scale, ctx.by_positive = inputs
        pooled, norms, similarity, weights = output
        ctx.mark_non_differentiable(norms, similarity, weights)
        ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
        ctx.save_for_backward(features, texts, norms, similarity, weights, pooled)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "members images pairs"] | None, *_: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if gradient is None:  # nothing depends on the pooled cosines
            return None, None, None, None, None
        features, texts, norms, similarity, weights, pooled = ctx.saved_tensors
        # of the loss by each scaled cosine, o
        by_cosine = similarity - pooled[:, :, None]
        if ctx.by_positive:
            by_cosine *= gradient[:, :, None]
            absent, present = by_cosine.chunk(2, dim=-1)
            present += absent  # both are pooled by the softmax of the presence text
            absent.zero_()
            by_cosine += gradient[:, :, None]
            absent *= weights
            present *= weights
        else:
            by_cosine.add_(1).mul_(weights)
            by_cosine *= gradient[:, :, None]
        by_features = None
        if ctx.needs_input_grad[0]:
            # part along the feature itself, which its normalisation takes away
            along = (by_cosine * similarity).sum(dim=-1, keepdim=True)
        by_cosine *= ctx.scale / norms
        flat, all_features = by_cosine.flatten(1, 2), features.flatten(1, 2)
        if ctx.needs_input_grad[0]:
            by_features = torch.bmm(flat, texts).view_as(features)
            by_features.addcmul_(features, along / norms.square(), value=-1)
        return by_features, torch.bmm(flat.mT, all_features), None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, int | None, None, None],
        features: Tensor,
        texts: Tensor,
        dropped: Tensor | None,
        scale: float,
        by_positive: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """One more axis of members, by the axis that is there, or by that of the texts."""
        if in_dims[2] is not None:
            raise NotImplementedError("members that drop different locations cannot be computed")
        size = info.batch_size
        if in_dims[0] is None and in_dims[1] is not None:  # on the same features: more texts
            own = texts.movedim(in_dims[1], 0)
            halves = own.reshape(*own.shape[:2], 2, -1, own.shape[-1])
            every = halves.permute(1, 2, 0, 3, 4).flatten(1, 3)
            pooled, *others = _PooledCosine.apply(features, every, dropped, scale, by_positive)
            apart = pooled.unflatten(2, (2, size, -1)).permute(3, 0, 1, 2, 4).flatten(3)
            return (apart, *others), (0, None, None, None)

        def joined(values: Tensor, dim: int | None) -> Tensor:
            there = values.expand(size, *values.shape) if dim is None else values.movedim(dim, 0)
            return there.flatten(0, 1)

        outputs = _PooledCosine.apply(
            joined(features, in_dims[0]), joined(texts, in_dims[1]), dropped, scale, by_positive
        )
        parted = tuple(values.unflatten(0, (size, -1)) for values in outputs)
        return parted, (0, 0, 0, 0)


def _check_locations(features: Float[Tensor, "*axes locations dim"]) -> None:
    if features.shape[-2] == 0:
        raise ValueError("image features have no location; expected [images, locations, dim]")


def _split_pairs(
    logits: Float[Tensor, "*axes pairs"],
) -> Float[Tensor, "*axes 2 classes"]:
    """Negatives, then positives, to an axis of polarity."""
    if logits.shape[-1] % 2:
        raise _odd(logits.shape[-1])
    return logits.reshape(*logits.shape[:-1], 2, logits.shape[-1] // 2)


def _odd(count: int) -> ValueError:
    return ValueError(
        f"prompt pairs need an even number of text features, got {count}; "
        "pass all negative prompts, then all positive ones"
    )


def _unit(features: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
    """Scale to unit length; the floor of the norm would round to zero in half precision."""
    return F.normalize(at_least_float32(features), dim=-1)
