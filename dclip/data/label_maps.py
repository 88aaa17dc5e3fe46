"""Signs that a mask's numbers are read as the wrong classes.

A model that is right scores a few percent when the label map is shifted or permuted, and nothing
fails. Two things give such a map away, and both are only signs:

* where image-level labels exist as well (COCO's instances beside stuff-thing maps, VOC's objects
  beside its masks), the classes found in the masks must agree with them (`disagreements`);
* some classes have their place: the sky is above the road, the ceiling above the floor
  (`out_of_place`).

A permutation among classes that are rare, always occur together or have no place goes unseen. What
is certain is only the table of each adapter, which the tests compare with published pairs of number
and name.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from dclip.data.listing import ImageListing
from dclip.data.segmentation import SegmentationListing

VERTICAL_ORDER = (
    ("sky", "road"),
    ("sky", "sidewalk"),
    ("sky", "ground"),
    ("sky", "grass"),
    ("sky", "terrain"),
    ("sky", "earth"),
    ("sky", "sea"),
    ("sky", "car"),
    ("ceiling", "floor"),
    ("ceiling", "rug"),
    ("sky-other", "grass"),
    ("sky-other", "sea"),
    ("sky-other", "road"),
    ("clouds", "grass"),
    ("clouds", "sea"),
    ("ceiling-other", "floor-wood"),
    ("ceiling-other", "floor-tile"),
)
"""Pairs of classes of which the first lies above the second in photographs, taken on average."""


def disagreements(
    present: Bool[np.ndarray, "images classes"],
    labels: Integer[np.ndarray, "images classes"],
    class_names: Sequence[str],
    *,
    min_images: int = 5,
) -> list[str]:
    """Classes whose masks go with the image-level labels of another class.

    The agreement of mask class a and label class b is the share of images that have both among
    those that have one of them. A class is told of if it agrees with itself in less than half of
    the images and with another class more often.

    Args:
        present: Whether the mask of an image has a pixel of a class.
        labels: Label vectors of the same images, from another source; -1 counts as not there.
        class_names: Of the columns.
        min_images: Classes whose labels occur in fewer images are not judged.

    Returns:
        A sentence for each; none if the masks agree with the labels.

    Example:
        >>> labels = np.eye(3, dtype=np.int8).repeat(5, axis=0)
        >>> disagreements(labels > 0, labels, ("cat", "dog", "cow"))
        []
        >>> disagreements(labels[:, [1, 0, 2]] > 0, labels, ("cat", "dog", "cow"))[0]
        "masks of 'cat' go with labels of 'dog' (1.00), not with their own (0.00)"
    """
    in_mask = present.astype(np.float64)
    in_labels = (labels > 0).astype(np.float64)
    both = in_mask.T @ in_labels
    either = in_mask.sum(axis=0)[:, None] + in_labels.sum(axis=0)[None, :] - both
    agreement = both / np.maximum(either, 1)
    judged = np.flatnonzero(in_labels.sum(axis=0) >= min_images).tolist()
    told = []
    for column in judged:
        best = judged[int(np.argmax(agreement[column, judged]))]
        own, other = agreement[column, column], agreement[column, best]
        if best != column and own < 0.5 and other > own:
            told.append(
                f"masks of {class_names[column]!r} go with labels of {class_names[best]!r}"
                f" ({other:.2f}), not with their own ({own:.2f})"
            )
    return told


def out_of_place(
    heights: Float[np.ndarray, " classes"], class_names: Sequence[str], *, margin: float = 0.0
) -> list[str]:
    """Pairs of classes that are upside down.

    Args:
        heights: Mean position of each class's pixels, 0 at the top of the image and 1 at the
            bottom; nan for a class without pixels.
        class_names: Of the same classes.
        margin: How much further down the upper one must lie to be told of, a fraction of the image.

    Returns:
        A sentence for each pair of `VERTICAL_ORDER` that is the wrong way round.

    Example:
        >>> out_of_place(np.array([0.8, 0.3]), ("sky", "road"))
        ["'sky' lies below 'road' (0.80, 0.30 of the way down)"]
    """
    place = dict(zip(class_names, heights.tolist(), strict=True))
    return [
        f"{upper!r} lies below {lower!r} ({place[upper]:.2f}, {place[lower]:.2f} of the way down)"
        for upper, lower in VERTICAL_ORDER
        if upper in place and lower in place and place[upper] > place[lower] + margin
    ]


class MaskStatistics:
    """Where the pixels of each class lie, and which classes each mask has, mask by mask.

    Args:
        class_names: In the order of mask values.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._pixels = np.zeros(len(self.class_names))
        self._depth = np.zeros(len(self.class_names))
        self._present: dict[str, Bool[np.ndarray, " classes"]] = {}

    def add(self, key: str, mask: UInt8[np.ndarray, "height width"]) -> None:
        """Take one mask into account; ``key`` is that of its sample."""
        classes = len(self.class_names)
        downward = (np.arange(mask.shape[0]) + 0.5) / mask.shape[0]
        weights = np.broadcast_to(downward[:, None], mask.shape).ravel()
        pixels = np.bincount(mask.ravel(), minlength=256)[:classes]
        self._pixels += pixels
        self._depth += np.bincount(mask.ravel(), weights=weights, minlength=256)[:classes]
        self._present[key] = pixels > 0

    def heights(self) -> Float[np.ndarray, " classes"]:
        """Mean position of each class's pixels, 0 top and 1 bottom, nan for one without pixels."""
        heights = np.full(len(self.class_names), np.nan)
        np.divide(self._depth, self._pixels, out=heights, where=self._pixels > 0)
        return heights

    def doubts(self, labelled: ImageListing | None = None, *, min_images: int = 5) -> list[str]:
        """All signs that the masks were read with a wrong label map.

        Args:
            labelled: Image-level labels of images with the same keys, and of classes with the same
                names; masks it does not know are only looked at for places.
            min_images: See `disagreements`.

        Returns:
            Sentences for people; empty if nothing is suspicious, which proves nothing.
        """
        told = out_of_place(self.heights(), self.class_names)
        if labelled is None:
            return told
        row_of = {key: row for row, key in enumerate(labelled.keys) if key in self._present}
        if not row_of:
            return told
        shared = [name for name in self.class_names if name in labelled.class_names]
        here = [self.class_names.index(name) for name in shared]
        there = [labelled.class_names.index(name) for name in shared]
        present = np.stack([self._present[key] for key in row_of])
        labels = labelled.labels[list(row_of.values())]
        return told + disagreements(
            present[:, here], labels[:, there], shared, min_images=min_images
        )


def label_map_doubts(
    listing: SegmentationListing,
    indices: Iterable[int],
    *,
    labelled: ImageListing | None = None,
    min_images: int = 5,
) -> list[str]:
    """All signs that the masks of some samples are read with a wrong label map.

    Args:
        listing: Masks to look at.
        indices: Which samples; some dozens suffice.
        labelled: See `MaskStatistics.doubts`.
        min_images: See `disagreements`.

    Returns:
        Sentences for people; empty if nothing is suspicious, which proves nothing.

    Raises:
        ImageError: If an image or mask cannot be read.
    """
    statistics = MaskStatistics(listing.class_names)
    for index in indices:
        statistics.add(listing.key(index), listing.read(index).mask)
    return statistics.doubts(labelled, min_images=min_images)
