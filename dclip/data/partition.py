"""One list of images parted into training and test images that have the same mix of classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int8, Int64, UInt8

from dclip.data.listing import ImageListing, Listing, digest
from dclip.data.webdataset_listing import WebdatasetListing

Part = Literal["train", "test"]


def partition(
    labels: UInt8[np.ndarray, "images classes"] | Int8[np.ndarray, "images classes"],
    *,
    fraction: float,
    seed: int,
) -> Bool[np.ndarray, " images"]:
    """Which images are the test part.

    Iterative stratification: the rarest class that has images left is dealt first, each of its
    images to the part that lacks it most. Then images move so that every class of two images or
    more is in both parts, and so that the test part has its share of all images; none moves that is
    the last of a class in its part.

    The order of the classes does not matter.

    Args:
        labels: Label vectors; only 1 counts as an image of a class.
        fraction: Share of the test part, above 0 and below 1.
        seed: Of the order in which images of a class are dealt.

    Returns:
        True for the images of the test part: the nearest whole number to the share, at least one
        and not all, but for images that had to move or could not for the sake of a class.

    Raises:
        ValueError: If there are fewer than two images, or the fraction is out of range.

    References:
        Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1.

    Example:
        >>> labels = np.array([[1, 0]] * 5 + [[0, 1]] * 5, np.uint8)
        >>> partition(labels, fraction=0.2, seed=0).sum().item()
        2
    """
    total = len(labels)
    if total < 2:
        raise ValueError(f"{total} image cannot be parted into train and test")
    if not 0 < fraction < 1:
        raise ValueError(f"the test fraction must lie between 0 and 1, got {fraction}")
    order = np.random.default_rng([seed, 3]).permutation(total)  # by which ties are broken
    deal = _Deal(labels[order] == 1, fraction)
    deal.stratify()
    deal.cover()
    deal.fill(min(max(round(fraction * total), 1), total - 1))
    is_test = np.zeros(total, np.bool_)
    is_test[order] = deal.part == 1
    return is_test


class _Deal:
    """Images in a shuffled order, and the part each is in: 0 train, 1 test, -1 not dealt yet.

    Attributes:
        part: Of each image.
        classes: Columns of each image.
        images: Rows of each class.
        wanted: Images of each class that each part should have.
        counts: Images of each class that each part has.
    """

    def __init__(self, positives: Bool[np.ndarray, "images classes"], fraction: float) -> None:
        # so that classes of one size are dealt in an order that their names have no part in
        by_images = sorted(range(positives.shape[1]), key=lambda k: positives[:, k].tobytes())
        positives = positives[:, by_images]
        rows, columns = np.nonzero(positives)
        ends = np.searchsorted(rows, np.arange(1, len(positives)))
        self.part: Int64[np.ndarray, " images"] = np.full(len(positives), -1)
        self.classes = np.split(columns, ends)
        self.images = [np.flatnonzero(column) for column in positives.T]
        self.shares = np.array([1 - fraction, fraction])
        self.wanted: Float[np.ndarray, "2 classes"] = np.outer(self.shares, positives.sum(axis=0))
        self.counts: Int64[np.ndarray, "2 classes"] = np.zeros(self.wanted.shape, np.int64)

    def stratify(self) -> None:
        """Deal all images, those of the rarest class first."""
        lacking, left = self.wanted.copy(), np.array([len(rows) for rows in self.images])
        room = self.shares * len(self.part)
        while left.any():
            rarest = int(np.where(left > 0, left, left.max() + 1).argmin())
            rows = self.images[rarest]
            for row in rows[self.part[rows] < 0].tolist():
                (train, test), own = lacking[:, rarest], self.classes[row]
                chosen = int(test > train if test != train else room[1] > room[0])
                self._put(row, chosen)
                lacking[chosen, own] -= 1
                left[own] -= 1
                room[chosen] -= 1
        for row in np.flatnonzero(self.part < 0).tolist():  # of no class
            chosen = int(room[1] > room[0])
            self._put(row, chosen)
            room[chosen] -= 1

    def _put(self, row: int, chosen: int) -> None:
        before = self.part[row]
        if before >= 0:
            self.counts[before, self.classes[row]] -= 1
        self.counts[chosen, self.classes[row]] += 1
        self.part[row] = chosen

    def _may_leave(self, row: int, *, alone: bool) -> bool:
        """Whether no class loses its last image of a part; ``alone``: nor one of a single image."""
        own = self.classes[row]
        held = self.counts[self.part[row], own]
        is_single = self.counts[:, own].sum(axis=0) == 1
        return bool(np.all((held > 1) | (is_single & (not alone))))

    def cover(self) -> None:
        """Move images until each class of two images or more is in both parts, where it can be."""
        moved = True
        while moved:
            moved = False
            held = self.counts.sum(axis=0)
            poor = np.flatnonzero((held > 1) & (self.counts == 0).any(axis=0))
            for column in poor[np.argsort(held[poor], kind="stable")]:
                if self.counts[:, column].all():
                    continue  # an image of another class brought it
                empty = int(self.counts[1, column] == 0)
                rows: Sequence[int] = self.images[column].tolist()
                free = [row for row in rows if self._may_leave(row, alone=True)]
                free = free or [row for row in rows if self._may_leave(row, alone=False)]
                if free:
                    self._put(min(free, key=lambda row: len(self.classes[row])), empty)
                    moved = True

    def fill(self, target: int) -> None:
        """Move images, those that a part has too many of first, to a number of test images."""
        missing = target - int((self.part == 1).sum())
        goal = int(missing > 0)
        rows = np.flatnonzero(self.part != goal)
        lacking = self.wanted[goal] - self.counts[goal]
        gain = np.array([lacking[self.classes[row]].sum() for row in rows])
        ordered: list[int] = rows[np.argsort(-gain, kind="stable")].tolist()
        for row in ordered:
            if missing and self._may_leave(row, alone=goal == 1):
                self._put(row, goal)
                missing += 1 - 2 * goal
        for chosen in (0, 1):  # a part without an image is none, whatever a class loses
            if not (self.part == chosen).any():
                self._put(ordered[0], chosen)


def take_part(listing: Listing, part: Part, *, fraction: float, seed: int, split: str) -> Listing:
    """The training or the test images of a listing, which `partition` draws.

    Args:
        listing: All images, with label vectors that are listed.
        part: Which of the two.
        fraction: Share of the test part, above 0 and below 1.
        seed: Of the draw.
        split: What to call the part.

    Returns:
        A listing in the same order, with the same classes. Its identity says of which images it is
        a part, the fraction, the seed and which part; and a note does.

    Raises:
        ValueError: If the labels are not listed (they are drawn with the images), there are fewer
            than two images, or the fraction is out of range.
    """
    if not isinstance(listing, ImageListing | WebdatasetListing):
        raise ValueError(f"{listing.name} has splits of its own and cannot be parted")
    is_test = partition(listing.labels, fraction=fraction, seed=seed)
    rows = np.flatnonzero(is_test == (part == "test"))
    whole = f"{len(listing):,} images of {listing.split!r}"
    about = {
        "part": part,
        "part_of": digest(listing.identity()),
        "test_fraction": repr(fraction),
        "split_seed": str(seed),
    }
    note = f"{len(rows):,} of the {whole}: parted by test fraction {fraction:g}, seed {seed}"
    common: dict[str, Any] = {
        "split": split,
        "options": {**listing.options, **about},
        "keys": tuple(listing.keys[row] for row in rows),
        "labels": listing.labels[rows],
        "notes": (*listing.notes, note),
    }
    if isinstance(listing, ImageListing):
        names = tuple(listing.file_names[row] for row in rows)
        return replace(listing, file_names=names, **common)
    return replace(
        listing,
        tar_of=listing.tar_of[rows],
        offsets=listing.offsets[rows],
        sizes=listing.sizes[rows],
        **common,
    )
