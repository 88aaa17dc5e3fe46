"""How alike the text features of different classes are, and in which of many ways that is meant."""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class ProjectsTexts(Protocol):
    """What the report needs of a model; :class:`dclip.model.DCLIP` has it."""

    def project_texts(
        self,
        texts: Float[Tensor, "texts embed_dim"],
        *,
        statistics: Literal["running", "batch"],
    ) -> Float[Tensor, "texts output_dim"]:
        """Project text features, BatchNorm using its running or the batch's statistics."""
        ...


def cosine_matrix(
    features: Float[Tensor, "classes dim"],
) -> Float64[Tensor, "classes classes"]:
    """Cosine of every class with every class.

    Args:
        features: One text feature per class, of any length.

    Returns:
        Cosines in [-1, 1]; 1 on the diagonal.

    Example:
        >>> cosine_matrix(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))[0]
        tensor([1.0000, 0.7071], dtype=torch.float64)
    """
    unit = F.normalize(features.double(), dim=1)
    return unit @ unit.T


def inter_class_cosine(
    features: Float[Tensor, "classes dim"], *, include_diagonal: bool = False
) -> float:
    """Mean cosine between the text features of different classes.

    Args:
        features: One text feature per class, of any length.
        include_diagonal: Whether each class's cosine with itself, which is 1, counts too.

    Returns:
        Mean cosine in [-1, 1].

    Raises:
        ValueError: If there are fewer than two classes.

    Example:
        >>> inter_class_cosine(torch.eye(4))
        0.0
        >>> inter_class_cosine(torch.eye(4), include_diagonal=True)
        0.25
    """
    return _mean(cosine_matrix(features), include_diagonal=include_diagonal)


def mask_overlap(masks: Float[Tensor, "classes dim"]) -> float:
    r"""Mean overlap of the masks of different classes: :math:`\sum \min / \sum \max`.

    Of masks of 0 and 1 it is the Jaccard index, what two have in common of what either has.

    Args:
        masks: One for each class, entries in [0, 1].

    Returns:
        Mean over all pairs, in [0, 1]; two masks that are closed overlap in nothing.

    Raises:
        ValueError: If there are fewer than two masks.

    Example:
        >>> mask_overlap(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
        0.5
    """
    count = len(masks)
    if count < 2:
        raise ValueError(f"overlap needs at least two masks, got {count}")
    values = masks.double()
    total = 0.0
    for place in range(count - 1):  # a row at a time: pairs of all are large
        own, others = values[place], values[place + 1 :]
        common = torch.minimum(own, others).sum(1)
        total += float((common / torch.maximum(own, others).sum(1).clamp_min(1e-12)).sum())
    return total / (count * (count - 1) / 2)


@torch.no_grad()
def similarity_report(
    model: ProjectsTexts, text_pairs: Float[Tensor, "pairs embed_dim"]
) -> dict[str, float]:
    """Mean inter-class cosines before and after projection, every reading under its own name.

    A published mean such as "0.77 to 0.50" depends on four choices, and each key names all four:

    * whose features: ``clip`` (as given) or ``dclip`` (projected);
    * polarity: ``positive`` or ``negative`` prompts, each among themselves, or ``pos_neg``, the
      cosine of a class's negative prompt with its own positive one, averaged over classes;
    * for ``dclip``, the statistics of BatchNorm: ``eval`` (the running ones, as in training and
      inference) or ``batch_stats`` (those of the class list itself, as when the projector is left
      in training mode; the two polarities apart). ``pos_neg`` is given in ``eval`` only;
    * scale: ``raw`` cosines, or ``minmax``: the whole matrix stretched to [0, 1] if it has a
      negative entry, left alone otherwise, as for the similarity matrices drawn in the paper.

    The diagonal is out, unless the key ends in ``/with_diagonal``. The headline is
    ``dclip/positive/eval/raw``, to be set against ``clip/positive/raw``. The paper's notebook, as
    far as it is known, is ``dclip/positive/batch_stats/minmax``, fed with unit features of
    ``"a photo of a {}."``.

    Args:
        model: Has trained projectors; its state and mode stay as they are.
        text_pairs: Features of the prompt pairs, all negatives before all positives, unnormalised.

    Returns:
        Cosines in [-1, 1], those under ``minmax`` in [0, 1], by key.

    Raises:
        ValueError: If there are fewer than two classes, or the number of texts is odd.

    References:
        Rawlekar et al., "Efficiently Disentangling CLIP for Multi-Object Perception",
        arXiv:2502.02977, section 1 and the similarity matrices.
    """
    if text_pairs.shape[0] % 2:
        raise ValueError(
            f"prompt pairs need an even number of text features, got {text_pairs.shape[0]}; "
            "pass all negative prompts, then all positive ones"
        )
    if text_pairs.shape[0] < 4:
        raise ValueError(
            f"inter-class cosine needs at least two classes, got {text_pairs.shape[0] // 2}"
        )
    negative, positive = text_pairs.tensor_split(2)
    report: dict[str, float] = {}
    for polarity, texts in (("positive", positive), ("negative", negative)):
        spaces = {
            f"clip/{polarity}": texts,
            f"dclip/{polarity}/eval": model.project_texts(texts, statistics="running"),
            f"dclip/{polarity}/batch_stats": model.project_texts(texts, statistics="batch"),
        }
        for space, features in spaces.items():
            cosines = cosine_matrix(features)
            for scale, matrix in (("raw", cosines), ("minmax", _stretched(cosines))):
                key = f"{space}/{scale}"
                report[key] = _mean(matrix, include_diagonal=False)
                report[f"{key}/with_diagonal"] = _mean(matrix, include_diagonal=True)
    report["clip/pos_neg/raw"] = _mean_cosine(negative, positive)
    report["dclip/pos_neg/eval/raw"] = _mean_cosine(
        model.project_texts(negative, statistics="running"),
        model.project_texts(positive, statistics="running"),
    )
    return report


def _mean(matrix: Float64[Tensor, "classes classes"], *, include_diagonal: bool) -> float:
    """Mean of the entries, with or without the diagonal."""
    num_classes = matrix.shape[0]
    if num_classes < 2:
        raise ValueError(f"inter-class cosine needs at least two classes, got {num_classes}")
    if include_diagonal:
        return matrix.mean().item()
    off_diagonal = matrix.sum() - matrix.trace()
    return off_diagonal.item() / (num_classes * (num_classes - 1))


def _stretched(
    matrix: Float64[Tensor, "classes classes"],
) -> Float64[Tensor, "classes classes"]:
    """The matrix stretched to [0, 1] if any entry is negative."""
    lowest, highest = matrix.aminmax()
    return (matrix - lowest) / (highest - lowest) if lowest < 0 else matrix


def _mean_cosine(
    first: Float[Tensor, "classes dim"], second: Float[Tensor, "classes dim"]
) -> float:
    """Mean cosine of the rows of the same index."""
    return F.cosine_similarity(first.double(), second.double(), dim=1).mean().item()
