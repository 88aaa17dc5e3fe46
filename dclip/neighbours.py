"""Images that are near each other, or near a text, by the cosine of frozen features."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


class Best(NamedTuple):
    """The images nearest to each query, the nearest first.

    Attributes:
        scores: Cosines; of fewer images than were asked for, as many as there are.
        rows: Of the images.
        places: Position of the best location, counted row by row of the grid; -1 where the whole
            image was compared.
    """

    scores: Float[Tensor, "queries best"]
    rows: Int64[Tensor, "queries best"]
    places: Int64[Tensor, "queries best"]


class Nearest:
    """The nearest images so far; what is kept does not grow with what is looked at.

    Equal cosines are ranked by row, so that the result does not depend on the parts in which
    images come.

    Args:
        count: Images to keep for each query, at least 1.

    Example:
        >>> nearest = Nearest(1)
        >>> nearest.add(torch.tensor([[0.1, 0.7]]), first=0)
        >>> nearest.add(torch.tensor([[0.4]]), first=2)
        >>> nearest.best().rows.tolist()
        [[1]]
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be 1 or more, got {count}")
        self._count = count
        self._best: Best | None = None

    def add(
        self,
        scores: Float[Tensor, "queries images"],
        *,
        first: int,
        places: Int64[Tensor, "queries images"] | None = None,
    ) -> None:
        """Look at some more images.

        Args:
            scores: Cosine of each with each query.
            first: Row of the first of them; they follow each other, and those that came before.
            places: Best location of each, if they were compared by locations.
        """
        rows = torch.arange(first, first + scores.shape[1]).expand(len(scores), -1)
        if places is None:
            places = torch.full_like(rows, -1)
        parts = [Best(scores.float().cpu(), rows, places.cpu())]
        if self._best is not None:
            parts.insert(0, self._best)
        every = Best(*(torch.cat(own, dim=1) for own in zip(*parts, strict=True)))
        order = every.scores.argsort(dim=1, descending=True, stable=True)[:, : self._count]
        self._best = Best(*(own.gather(1, order) for own in every))

    def best(self) -> Best:
        """What was kept.

        Raises:
            ValueError: Nothing was looked at.
        """
        if self._best is None:
            raise ValueError("no image was looked at")
        return self._best


def best_locations(
    local: Float[Tensor, "images locations dim"], queries: Float[Tensor, "queries dim"]
) -> tuple[Float[Tensor, "queries images"], Int64[Tensor, "queries images"]]:
    """Largest cosine of any location of each image with each query, and where it is.

    Args:
        local: Local features, without a mean token, of any length.
        queries: Features of texts or images, of any length.
    """
    values = local.float()
    # dividing the products takes less time than dividing the features
    products = values @ F.normalize(queries.float(), dim=-1).mT
    lengths = torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_min(1e-12)
    scores, places = (products / lengths).max(dim=1)
    return scores.mT, places.mT


def nearest_pairs(
    one: Float[Tensor, "images dim"],
    other: Float[Tensor, "others dim"] | None = None,
    *,
    each: int = 10,
    block: int = 1024,
) -> Int64[np.ndarray, "pairs 2"]:
    """Every image with those nearest to it by the cosine of vectors, as candidates for copies.

    All are compared with all, a block at a time: memory grows with their number, time with its
    square.

    Args:
        one: A vector an image, of any length.
        other: Of other images; left out: the same, none with itself.
        each: Nearest images of each.
        block: Rows that are compared at once.

    Returns:
        Rows of both, each pair once and in order; of one source the smaller row first.
    """
    theirs = F.normalize(one if other is None else other, dim=-1)
    found = []
    for start in range(0, len(one), block):
        ours = F.normalize(one[start : start + block], dim=-1)
        cosines = ours @ theirs.mT
        rows = torch.arange(start, start + len(ours))
        if other is None:
            cosines[torch.arange(len(ours)), rows] = -torch.inf
        count = min(each, cosines.shape[1] - (other is None))
        nearest = cosines.topk(count, dim=1).indices
        found.append(torch.stack([rows[:, None].expand_as(nearest), nearest], dim=-1).flatten(0, 1))
    pairs = torch.cat(found).numpy() if found else np.empty((0, 2), np.int64)
    if other is None:
        pairs = np.sort(pairs, axis=1)
    return np.unique(pairs, axis=0)


def agreement(
    one: Float[Tensor, "pairs locations dim"], other: Float[Tensor, "pairs locations dim"]
) -> Float[Tensor, " pairs"]:
    """Mean over locations of the cosine of two images there: near 1 for copies of one picture.

    Global embeddings say what is in an image; of two scenes of the same things they are nearly the
    same. Locations say what is where.

    Args:
        one: Local features of an image of each pair, without a mean token.
        other: Of the other one.
    """
    return F.cosine_similarity(one.float(), other.float(), dim=-1).mean(dim=1)


def mean_directions(
    local: Float[Tensor, "images locations dim"],
) -> Float[Tensor, "images dim"]:
    """Mean of the unit features of all locations, the vector by which copies are looked for."""
    return F.normalize(local.float(), dim=-1).mean(dim=1)


def groups_of(count: int, pairs: Int64[np.ndarray, "pairs 2"]) -> Int64[np.ndarray, " images"]:
    """A number for each image, the same for those that pairs join, directly or by way of others.

    Args:
        count: Number of images.
        pairs: Rows of images that belong together.

    Example:
        >>> groups_of(5, np.array([[0, 2], [2, 3]])).tolist()
        [0, 1, 0, 0, 4]
    """
    group = list(range(count))

    def top(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = group[row]
        return row

    for one, other in pairs.tolist():
        low, high = sorted((top(one), top(other)))
        group[high] = low
    return np.array([top(row) for row in range(count)], np.int64)
