r"""Intersection over union, from counts of pixels by true and predicted class.

Two measures go by the name mIoU, and they are not comparable:

* `miou`, the field's: pixels of the whole data set are counted in one matrix first, then
  :math:`\mathrm{IoU}_c = TP_c / (TP_c + FP_c + FN_c)`, then the mean over classes present;
* `miou_paper`, of the DCLIP authors' scripts: a mean over classes *predicted* in one image, then
  the mean over images. A class that an image has and that is not predicted there costs nothing,
  and neither does a class seen once in a thousand images.

One image with pixels ``a a a b`` predicted ``a a a a``, a second one ``b b b b`` predicted so, have
:math:`\mathrm{IoU}_a = 3/4, \mathrm{IoU}_b = 4/5`, so a `miou` of 0.775; `miou_paper` has 3/4 for
the first (``b`` is not predicted there) and 1 for the second, so 0.875.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor


def confusion_matrix(
    predictions: Shaped[Tensor, "*pixels"],
    targets: Shaped[Tensor, "*pixels"],
    *,
    num_classes: int,
    ignore_index: int = 255,
) -> Int64[Tensor, "classes classes"]:
    """Pixels by true class (row) and predicted class (column).

    Matrices of parts of a data set add up to the matrix of the whole.

    Args:
        predictions: Class of each pixel, below ``num_classes``; what stands where the target is
            ignored does not matter.
        targets: True class of each pixel, or ``ignore_index``.
        num_classes: Number of classes, at least 1.
        ignore_index: Target value of the pixels that are not counted.

    Raises:
        ValueError: If a class is out of range, or there is no class.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), num_classes=2)
        tensor([[1, 1],
                [0, 0]])
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    is_counted = targets != ignore_index
    true, predicted = targets[is_counted].long(), predictions[is_counted].long()
    for what, classes in (("target", true), ("prediction", predicted)):
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            strange = classes[(classes < 0) | (classes >= num_classes)][0].item()
            raise ValueError(f"{what} {strange} is none of the {num_classes} classes")
    counts = torch.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_iou(
    confusion: Int64[Tensor, "classes classes"],
) -> Float64[Tensor, " classes"]:
    """IoU of every class; nan for one that is neither true nor predicted anywhere.

    Args:
        confusion: From `confusion_matrix`.

    Example:
        >>> class_iou(torch.tensor([[3, 0], [1, 4]]))
        tensor([0.7500, 0.8000], dtype=torch.float64)
    """
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())


def miou(confusion: Int64[Tensor, "classes classes"]) -> float:
    """The field's mIoU: the mean of `class_iou` over classes that are true or predicted somewhere.

    Args:
        confusion: Of the whole data set.

    Returns:
        In [0, 1]; nan if no pixel was counted.

    Example:
        >>> miou(torch.tensor([[3, 0], [1, 4]]))
        0.775
    """
    return float(class_iou(confusion).nanmean())


def pixel_accuracy(confusion: Int64[Tensor, "classes classes"]) -> float:
    """Share of the counted pixels whose class is right; nan if no pixel was counted."""
    return float(confusion.diagonal().sum().double() / confusion.sum())


class PaperIoU(NamedTuple):
    """The measures of the authors' scripts for one image; the result is their mean over images.

    Attributes:
        miou_paper: Mean IoU over the classes predicted anywhere in the image.
        miou_paper_positive: Mean IoU over the classes whose IoU is above 0; nan if there is none,
            and such an image has no share in the mean over images.
    """

    miou_paper: float
    miou_paper_positive: float


def image_miou_paper(
    confusion: Int64[Tensor, "classes classes"],
    predicted: Bool[Tensor, " classes"],
    *,
    background: int | None = None,
) -> PaperIoU:
    """`miou_paper` and `miou_paper_positive` of one image.

    Pixels of true background are not counted, so that what is predicted there costs nothing in the
    IoU of a class. A class predicted there alone has an IoU of 0 that does enter ``miou_paper``,
    and so has background where it is predicted: both as in the scripts.

    Args:
        confusion: Of this image.
        predicted: Whether a class is predicted on any pixel, counted or not.
        background: Position of background among the classes; None where it is none.

    Raises:
        ValueError: If no class is predicted: an image without pixels.

    References:
        ``vocper.py`` and its siblings in the authors' repository ``SamyakR99/Embeddings``:
        torchmetrics' ``MulticlassJaccardIndex(average=None, ignore_index=0)`` image by image, read
        at the classes of the prediction.
    """
    if not predicted.any():
        raise ValueError("no class is predicted in the image; has it no pixels?")
    counted = confusion
    if background is not None:
        counted = confusion.clone()
        counted[background] = 0
    iou = class_iou(counted).nan_to_num(0.0)
    return PaperIoU(float(iou[predicted].mean()), float(iou[iou > 0].mean()))


class Confusion(NamedTuple):
    """One class taken for another.

    Attributes:
        true: Position of the true class.
        predicted: Position of the class it is taken for.
        share: Of the true class's pixels, in [0, 1].
        pixels: Their number.
    """

    true: int
    predicted: int
    share: float
    pixels: int


def confusion_pairs(
    confusion: Int64[Tensor, "classes classes"], *, largest: int = 10
) -> list[Confusion]:
    """Which class takes whose pixels: the largest shares off the diagonal, largest first.

    Args:
        confusion: From `confusion_matrix`.
        largest: At most so many pairs; pairs without a pixel are left out.

    Example:
        >>> confusion_pairs(torch.tensor([[3, 1], [0, 4]]))
        [Confusion(true=0, predicted=1, share=0.25, pixels=1)]
    """
    pixels = confusion - confusion.diagonal().diag()
    shares = pixels / confusion.sum(1, keepdim=True).clamp(min=1)
    order = shares.flatten().argsort(descending=True, stable=True)[:largest].tolist()
    found = [divmod(place, len(confusion)) for place in order]
    return [
        Confusion(true, to, float(shares[true, to]), int(pixels[true, to]))
        for true, to in found
        if pixels[true, to]
    ]


class Leakage(NamedTuple):
    """How much of a class goes to the classes most like it; means over classes with a pixel.

    Attributes:
        target_iou: IoU of a class with itself; more is better.
        leaked_iou: IoU of the classes most like it with its region; less is better.
        harmonic_mean: Of ``target_iou`` and ``1 - leaked_iou``, class by class, then averaged.
    """

    target_iou: float
    leaked_iou: float
    harmonic_mean: float


def leakage(
    confusion: Int64[Tensor, "classes classes"],
    similarity: Float[Tensor, "classes classes"],
    *,
    neighbours: int = 3,
) -> Leakage:
    r"""Whether a class's region is taken by the classes whose texts are most like its own.

    With :math:`R_t` the pixels that are truly :math:`t`, :math:`P_s` those predicted :math:`s`, and
    :math:`S_t` the ``neighbours`` classes other than :math:`t` that are most similar to it,

    .. math::
        I_t = \frac{|P_t \cap R_t|}{|P_t \cup R_t|}, \qquad
        J_t = \frac{1}{|S_t|} \sum_{s \in S_t} \frac{|P_s \cap R_t|}{|P_s \cup R_t|}, \qquad
        H_t = \frac{2 \, I_t \, (1 - J_t)}{I_t + 1 - J_t}

    and the result is the mean of each over the classes with :math:`R_t \neq \emptyset`. Of equally
    similar classes the first come first.

    Args:
        confusion: From `confusion_matrix`.
        similarity: How alike two classes are, larger meaning more; its diagonal is not looked at.
            For numbers that can be compared, the same for all systems: cosines of CLIP's own texts.
        neighbours: Size of :math:`S_t`; all other classes if there are no more.

    Raises:
        ValueError: If there are fewer than two classes or ``neighbours`` is below 1.

    References:
        After the measure of an unofficial re-implementation of DCLIP; it is not the paper's.

    Example:
        >>> leakage(torch.tensor([[2, 2], [0, 4]]), torch.eye(2), neighbours=1).leaked_iou
        0.125
    """
    classes = len(confusion)
    if classes < 2 or neighbours < 1:
        raise ValueError(f"cannot take {neighbours} neighbours among {classes} classes")
    true, predicted = confusion.sum(1), confusion.sum(0)
    union = true[:, None] + predicted - confusion
    iou = confusion.double() / union.clamp(min=1)
    order = similarity.double().clone().fill_diagonal_(-torch.inf)
    nearest = order.argsort(dim=1, descending=True, stable=True)[:, : min(neighbours, classes - 1)]
    kept = 1 - iou.gather(1, nearest).mean(1)
    target = iou.diagonal()
    harmonic = 2 * target * kept / (target + kept).clamp(min=torch.finfo(torch.float64).tiny)
    has_pixels = true > 0
    means = [float(values[has_pixels].mean()) for values in (target, 1 - kept, harmonic)]
    return Leakage(*means)
