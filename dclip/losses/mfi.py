"""Mutual feature information (MFI): what the text feature of one class tells of the others."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dclip.precision import at_least_float32

Scope = Literal["both", "split", "positive"]
"""Which prompts are held apart: all 2N, each polarity among itself, or the positives alone."""

Gram = Literal["feature", "class"]
"""Whose inner products are taken: of the columns (features) or of the rows (classes)."""

STABILITY_LIMIT = 0.01
"""Highest alpha * lambda * (2N)^2 * learning rate that was seen to train without overshooting."""

DIAGONAL_CURVATURE = 0.01
"""What the diagonal term adds to stability, as if it were this much of lambda (3/d', d' = 256)."""


def mfi_loss(
    text_features: Float[Tensor, "*members pairs dim"],
    *,
    redundancy_weight: float | Float[Tensor, "*members"] = 0.2,
    scope: Scope = "both",
    gram: Gram = "feature",
    center: bool = False,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, "*members"]:
    r"""Redundancy among projected text features, and how far their Gram matrix is from identity.

    With unit rows :math:`\hat T` and :math:`C = \hat T^\top \hat T` (``gram="feature"``) or
    :math:`C = \hat T \hat T^\top` (``gram="class"``), not divided by the number of rows,

    .. math::
        L = \sum_d (C_{dd} - 1)^2 + \lambda \sum_{d \ne e} C_{de}^2

    The two Gram matrices differ less than they seem to. For R rows of width d' they have the same
    sum of squares, which gives the identity

    .. math::
        L_\text{feature} = L_\text{class}
            + (1 - \lambda) \sum_d C_{dd}^2 + (R \lambda - 2 R + d')

    with the feature-wise :math:`C_{dd}`: the feature-wise loss also asks that energy be spread
    over the features, and class-wise the diagonal term is zero, rows being of unit length.

    The authors' code passes the rows through a BatchNorm without affine part in evaluation mode,
    which divides them by :math:`\sqrt{1 + 10^{-5}}`; that factor, 1e-5 of C, is left out here.

    Args:
        text_features: Projected features of the prompt pairs, of any length: first all negative
            prompts, then all positive ones. Leading axes are members of a
            pack, each with its own loss.
        redundancy_weight: Weight :math:`\lambda` of the off-diagonal squares, at least 0; a tensor
            gives one for each member and is not checked.
        scope: ``"both"`` takes all rows, ``"split"`` adds the losses of the two polarities,
            ``"positive"`` takes the positive rows.
        gram: ``"feature"`` as published, or ``"class"``.
        center: Turns C into a matrix of correlations: rows (features) are centred over the
            prompts and the compared vectors brought to unit length, which is Barlow Twins'
            cross-correlation. It removes the component that all classes share, which is what
            should shrink; here only to show that this reading makes classes more alike.
        reduction: ``"sum"`` as published, or ``"mean"``: each of the two terms is averaged over
            its entries, so that neither the number of classes nor the width matters. Take it with
            ``gram="class"``: averaged feature-wise, the diagonal term outweighs the redundancy by
            d' - 1 more than in the sum, and at a large learning rate nothing holds classes apart.

    Returns:
        The loss of each member, without unit, at least 0.

    Raises:
        ValueError: If the number of rows is odd or zero, the weight is negative, or an option is
            unknown.

    References:
        Rawlekar et al., "Efficiently Disentangling CLIP for Multi-Object Perception",
        arXiv:2502.02977, appendix A. Zbontar et al., "Barlow Twins: Self-Supervised Learning via
        Redundancy Reduction", ICML 2021, arXiv:2103.03230, for the two terms.

    Example:
        Two classes whose four prompts are orthogonal, in as many dimensions:

        >>> mfi_loss(3 * torch.eye(4))
        tensor(0.)
        >>> mfi_loss(torch.ones(4, 1))
        tensor(9.)
    """
    num_rows = text_features.shape[-2]
    if num_rows == 0 or num_rows % 2:
        raise ValueError(
            f"prompt pairs need an even number of text features above 0, got {num_rows}; "
            "pass all negative prompts, then all positive ones"
        )
    if not isinstance(redundancy_weight, Tensor) and not redundancy_weight >= 0:
        raise ValueError(f"redundancy_weight must be at least 0, got {redundancy_weight}")
    if gram not in ("feature", "class"):
        raise ValueError(f"gram must be 'feature' or 'class', got {gram!r}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")

    features = at_least_float32(text_features)
    negative, positive = features.tensor_split(2, dim=-2)
    match scope:
        case "both":
            blocks = [features]
        case "split":
            blocks = [negative, positive]
        case "positive":
            blocks = [positive]
        case _:
            raise ValueError(f"scope must be 'both', 'split' or 'positive', got {scope!r}")

    loss = features.new_zeros(features.shape[:-2])
    for block in blocks:
        # Float16 ends at 65,504, which the square of a Gram entry passes at 256 aligned rows.
        with torch.autocast(features.device.type, enabled=False):
            diagonal, off_diagonal = _gram_squares(block, gram=gram, center=center)
        if reduction == "mean":
            size = block.shape[-1] if gram == "feature" else block.shape[-2]
            diagonal = diagonal / size
            off_diagonal = off_diagonal / max(size * (size - 1), 1)
        loss = loss + diagonal + redundancy_weight * off_diagonal
    return loss


def _gram_squares(
    features: Float[Tensor, "*members rows dim"], *, gram: Gram, center: bool
) -> tuple[Float[Tensor, "*members"], Float[Tensor, "*members"]]:
    """Sums of squares of a Gram matrix minus identity: its diagonal and its off-diagonal part."""
    rows = F.normalize(features, dim=-1)
    if center:
        rows = F.normalize(
            rows - rows.mean(dim=-2, keepdim=True), dim=-2 if gram == "feature" else -1
        )
    matrix = rows.mT @ rows if gram == "feature" else rows @ rows.mT
    diagonal, off_diagonal, _ = _SquaredDistance.apply(matrix)
    return diagonal, off_diagonal


class _SquaredDistance(torch.autograd.Function):
    """Sums of squares of a matrix minus identity: its diagonal and its off-diagonal part.

    The matrix is overwritten. With thousands of classes it takes more room than all else, and
    differentiating step by step would make six of its size.
    """

    @staticmethod
    def forward(
        matrix: Float[Tensor, "*members size size"],
    ) -> tuple[
        Float[Tensor, "*members"], Float[Tensor, "*members"], Float[Tensor, "*members size"]
    ]:
        distance = matrix.diagonal(dim1=-2, dim2=-1) - 1
        # Set to zero rather than subtract, so that rounding leaves nothing where nothing should be.
        matrix.diagonal(dim1=-2, dim2=-1).zero_()
        return distance.square().sum(dim=-1), matrix.square().sum(dim=(-2, -1)), distance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[2], inputs[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int], matrix: Float[Tensor, "..."]
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """One more axis of members, by the axes that are there."""
        del info
        return _SquaredDistance.apply(matrix.movedim(in_dims[0], 0)), (0, 0, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        by_diagonal: Float[Tensor, "*members"],
        by_off_diagonal: Float[Tensor, "*members"],
        _: Tensor,
    ) -> Float[Tensor, "*members size size"]:
        distance, off_diagonal = ctx.saved_tensors
        by_matrix: Tensor = off_diagonal * (2 * by_off_diagonal[..., None, None])
        by_matrix.diagonal(dim1=-2, dim2=-1).copy_(2 * distance * by_diagonal[..., None])
        return by_matrix


def check_mfi_stability(
    alpha: float, num_classes: int, learning_rate: float, redundancy_weight: float = 0.2
) -> None:
    r"""Refuse a summed MFI loss so heavy that gradient descent would throw the classes together.

    Where classes are alike, the summed loss has a curvature of the order of
    :math:`\lambda (2N)^2` in the direction they share, so that a step is as bold as

    .. math::
        b = \alpha \, \max(\lambda, 0.01) \, (2N)^2 \, \eta

    where 0.01 stands for the diagonal term, whose curvature is about :math:`3 / d'` of that. The
    limit :data:`STABILITY_LIMIT` was measured on the loss alone: 200 to 600 steps of SGD (momentum
    0.9, weight decay 5e-4, no warm-up) on the text projector at default initialisation, with
    synthetic text features of unit length and mean cosine 0.77 (N = 20) or 0.69 (N = 80, 171), in
    widths 128, 512 and 1024, :math:`\lambda` from 0.0051 to 1, learning rates 2e-4 and 2e-3; three
    seeds at N = 80, one elsewhere.

    ============= ==============================================================================
    b             what the loss does
    ============= ==============================================================================
    up to 0.01    falls, never above its start; cosines from 0.003 on end below 0.03
    0.02          falls, but rises in up to 40% of the steps; above its start by up to 1.1 times
    0.03          above its start by up to 1.7 times; with lambda 0.0051, the classes become one
    0.05          above its start by 1.1 (N = 20) or 1.8 times (N = 80)
    0.1           ends unsettled, the mean cosine anywhere from 0 to 0.7
    1             with N = 80, all classes become one (cosine 1.0)
    ============= ==============================================================================

    The same b did the same for every N. Text features of length 10, nearer to CLIP's unnormalised
    ones, bear five to ten times as much. The published setting has b = 4.5e-5 for 20 classes,
    7.2e-4 for 80 and 3.3e-3 for 171.

    It concerns ``reduction="sum"`` over all prompts. ``scope="split"`` and ``"positive"`` bear
    somewhat more; ``reduction="mean"`` has no limit that depends on N.

    Args:
        alpha: Weight :math:`\alpha` of the summed loss in the objective, at least 0.
        num_classes: Number N of classes.
        learning_rate: Highest learning rate :math:`\eta` of the schedule.
        redundancy_weight: Weight :math:`\lambda` of the off-diagonal squares, at least 0.

    Raises:
        ValueError: If b exceeds :data:`STABILITY_LIMIT`; it names the highest alpha that passes.

    Example:
        >>> check_mfi_stability(7e-5, 80, 2e-3)
    """
    boldness = alpha * max(redundancy_weight, DIAGONAL_CURVATURE)
    boldness *= (2 * num_classes) ** 2 * learning_rate
    if not boldness <= STABILITY_LIMIT:
        raise ValueError(
            f"the summed MFI loss would diverge: alpha={alpha:g} with {num_classes} classes, "
            f"learning rate {learning_rate:g} and redundancy_weight={redundancy_weight:g} steps "
            f"{boldness / STABILITY_LIMIT:.2g} times too far; use an alpha of at most "
            f"{alpha * STABILITY_LIMIT / boldness:.2g}, a smaller learning rate, or "
            "reduction='mean'"
        )
