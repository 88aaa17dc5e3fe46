"""Top-1 accuracy of images of one class each, and the mean of two accuracies that punishes gaps."""

from jaxtyping import Int, Shaped
from torch import Tensor

from dclip.words import counted


def top1_accuracy(
    scores: Shaped[Tensor, "images classes"], labels: Int[Tensor, "images classes"]
) -> float:
    """Share of images whose one class has the highest score, and has it alone.

    An image of which two classes share the highest score is wrong: who scores all classes alike
    says nothing.

    Args:
        scores: The higher, the likelier; of any scale.
        labels: Label vectors with a single 1.

    Raises:
        ValueError: There is no image, or one shows no class or several.

    Example:
        >>> import torch
        >>> labels = torch.eye(3, dtype=torch.int)
        >>> top1_accuracy(torch.tensor([[2.0, 1, 0], [0, 2, 2], [1, 1, 1]]), labels)
        0.3333333333333333
    """
    if not len(scores):
        raise ValueError("there is no image to score")
    several = int(((labels == 1).sum(1) != 1).sum())
    if several:
        raise ValueError(
            f"top-1 accuracy is of images of one class each; {counted(several, 'image')} of "
            f"{len(labels)} show none or several"
        )
    best = scores.amax(1, keepdim=True)
    is_best = scores == best
    is_right = (is_best & (labels == 1)).any(1) & (is_best.sum(1) == 1)
    return int(is_right.sum()) / len(labels)


def harmonic_mean(base: float, new: float) -> float:
    """Of the accuracies on base and on new classes; 0 where one of them is.

    Published tables take it of the averages over seeds or data sets.

    Args:
        base: In [0, 1].
        new: In [0, 1].

    Example:
        >>> round(harmonic_mean(0.8228, 0.7514), 4)
        0.7855
    """
    return 2 * base * new / (base + new) if base + new > 0 else 0.0
