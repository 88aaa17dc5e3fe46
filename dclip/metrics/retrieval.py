"""Retrieval: how often an image's text, and a text's image, is among the first that are found."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

RANKS = (1, 5, 10)
"""How many of the first are looked at, where nothing is said."""

_MOST_SCORES = 1 << 24  # of a part: 64 MB


Score: TypeAlias = Literal["cosine", "fp16_softmax"]


class Recall(NamedTuple):
    """Recall of both directions, in [0, 1], by how many of the first were looked at.

    Attributes:
        image_to_text: Share of the images with one of their texts among them.
        text_to_image: Share of the texts with their image among them.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def retrieval_recall(
    images: Float[Tensor, "images dim"],
    texts: Float[Tensor, "texts dim"],
    image_of: Int[Tensor, " texts"],
    *,
    ranks: Sequence[int] = RANKS,
    score: Score = "cosine",
    most_scores: int = _MOST_SCORES,
) -> Recall:
    """Recall of texts by images and of images by texts, both ranked by their cosine in float32.

    Neither luck nor order decides where scores tie: the recall is its mean over all orders of what
    ties. Scores are computed some rows at a time and forgotten, so that memory does not grow with
    images times texts.

    Args:
        images: Of any length and dtype.
        texts: Of any length; every image has one or more.
        image_of: Row of the image that each text belongs to.
        ranks: How many of the first are looked at.
        score: ``"cosine"``; or ``"fp16_softmax"``, the softmax of unscaled cosines, all in float16,
            by which SmartCLIP's script for Flickr30k ranks: most of its scores tie.
        most_scores: Scores that are held at a time, but for one row at least.

    Raises:
        ValueError: A text is of no image, an image has no text, or a feature is not finite.

    Example:
        >>> images, texts = torch.eye(2), torch.eye(2)[[0, 0, 0]]
        >>> found = retrieval_recall(images, texts, torch.tensor([0, 0, 1]), ranks=[1])
        >>> {name: round(value[1], 3) for name, value in found._asdict().items()}
        {'image_to_text': 0.5, 'text_to_image': 0.667}
    """
    _check(images, texts, image_of)
    device = images.device
    unit = [F.normalize(each.float(), dim=1) for each in (images, texts.to(device))]
    owners = image_of.to(device), torch.arange(len(images), device=device)
    found = []
    for rows, candidates, own_of_candidates, own_of_rows in (
        (unit[0], unit[1], owners[0], owners[1]),
        (unit[1], unit[0], owners[1], owners[0]),
    ):
        size = max(1, most_scores // len(candidates))
        sums = torch.zeros(len(ranks), dtype=torch.float64)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            scores = _scores(rows[part], candidates, score)
            is_own = own_of_rows[part, None] == own_of_candidates
            for column, rank in enumerate(ranks):
                sums[column] += _chance(scores, is_own, rank).sum().cpu()
        shares = (sums / len(rows)).tolist()
        found.append(dict(zip(ranks, shares, strict=True)))
    return Recall(*found)


def _scores(
    rows: Float[Tensor, "rows dim"], candidates: Float[Tensor, "candidates dim"], score: Score
) -> Float[Tensor, "rows candidates"]:
    if score == "cosine":
        return rows @ candidates.T
    return (rows.half() @ candidates.half().T).softmax(dim=1)


def _chance(
    scores: Float[Tensor, "rows candidates"], is_own: Bool[Tensor, "rows candidates"], rank: int
) -> Float64[Tensor, " rows"]:
    """How likely one of each row's own is among its first, what ties being in any order.

    Of as many own ones o and others e as tie with the best own one, n have a place left behind
    those that are better. None of these n is an own one by e! (e + o - n)! / ((e - n)! (e + o)!).
    """
    best = scores.masked_fill(~is_own, -torch.inf).amax(1, keepdim=True)
    ties = scores == best
    better = (scores > best).sum(1)
    own, others = (ties & is_own).sum(1).double(), (ties & ~is_own).sum(1).double()
    places = (rank - better).clamp_min(0).double()
    missed = torch.ones_like(own)
    for place in range(rank):
        share = (others - place).clamp_min(0) / (others + own - place).clamp_min(1)
        missed = torch.where(places > place, missed * share, missed)
    return 1 - missed


def _check(images: Tensor, texts: Tensor, image_of: Tensor) -> None:
    if len(texts) == 0 or int(image_of.min()) < 0 or int(image_of.max()) >= len(images):
        raise ValueError(
            f"each of {len(texts)} texts belongs to one of {len(images)} images, and there is one "
            "at least"
        )
    bare = torch.bincount(image_of, minlength=len(images)) == 0
    if bare.any():
        raise ValueError(
            f"image {int(bare.int().argmax())} has no text; so it is with {int(bare.sum())} of "
            f"{len(images)}"
        )
    for what, features in (("image", images), ("text", texts)):
        broken = ~features.isfinite().all(1)
        if broken.any():
            raise ValueError(f"features of {what} {int(broken.int().argmax())} are not finite")
