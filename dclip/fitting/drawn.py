"""A part of the training data: which images and classes, and which labels are known or wrong.

What is drawn belongs to the row of an image and to the column of a class. It depends neither on the
order of the rows nor on which of them are looked at, and a draw of more holds that of less.
"""

import copy
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from dclip.data.few_shot import base_and_new, draw_shots
from dclip.fitting.batches import FeatureSource
from dclip.fitting.subset import Subset

_IMAGES, _SHOTS, _NOISE, _KNOWN = 7, 8, 9, 10  # 0 to 6 are draws of batches and of the loop
_BLOCK = 4096  # rows whose draws are in memory at a time


class Drawn(NamedTuple):
    """A part of the data.

    Attributes:
        features: As given, with the labels that are left: 0, 1, or -1 where they are not known.
        rows: Of the images that are left, in the order given.
        columns: Of the classes that are left among all, ascending; None if all are.
    """

    features: FeatureSource
    rows: Int64[np.ndarray, " rows"]
    columns: list[int] | None


def part_of(
    subset: Subset,
    features: FeatureSource,
    rows: Int64[np.ndarray, " images"],
    class_names: Sequence[str],
    *,
    seed: int,
) -> Drawn:
    """The part of the data that a subset asks for.

    Args:
        subset: What is left of it. Shots count images by their true labels, whatever noise does.
            Those of a protocol follow from the order of the rows, too.
        features: All of the data; they stay as they are.
        rows: Images to choose among.
        class_names: Of the columns of the labels.
        seed: Of all draws.

    Raises:
        ValueError: There are fewer images or classes than asked for, a class is not there or named
            twice, or nothing is left.
    """
    if not subset.identity():
        return Drawn(features, rows, None)
    labels, columns = features.labels, columns_of(subset, class_names)
    if subset.num_images is not None:
        if subset.num_images > len(rows):
            raise ValueError(f"subset.num_images {subset.num_images}: there are {len(rows)} images")
        rows = _lowest(rows, _uniform(len(labels), seed, _IMAGES)[rows], subset.num_images)
    if subset.protocol is not None:
        rows = _of_protocol(subset, labels, rows, class_names, seed)
    elif subset.shots is not None:
        rows = _of_every_class(labels, rows, columns, subset.shots, seed)
    if subset.label_fraction < 1 or subset.label_noise > 0:
        labels = _spoilt(labels, subset, seed)
    if columns is not None:
        labels = labels[:, columns]
    if not (labels[rows] >= 0).any():
        raise ValueError(
            f"subset.label_fraction {subset.label_fraction:g} leaves no label of {len(rows)} "
            "images; raise it"
        )
    return Drawn(with_labels(features, labels), rows, columns)


def columns_of(subset: Subset, class_names: Sequence[str]) -> list[int] | None:
    """Columns of the classes that a subset trains, ascending; None for all.

    Raises:
        ValueError: There are not so many, or a name is not there or there twice.
    """
    wanted = subset.classes
    if subset.protocol == "base_to_new":
        return base_and_new(range(len(class_names)))[0]
    if wanted is None:
        return None
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(class_names):
            raise ValueError(f"subset.classes {wanted}: there are {len(class_names)} classes")
        return list(range(wanted))
    known = {name: column for column, name in enumerate(class_names)}
    strange = [name for name in wanted if name not in known]
    if strange or not wanted or len(set(wanted)) < len(wanted):
        why = f"{strange[0]!r} is none of the classes" if strange else "name each class once"
        raise ValueError(f"subset.classes {', '.join(wanted)!r}: {why}")
    return sorted(known[name] for name in wanted)


def new_columns(subset: Subset, class_names: Sequence[str]) -> list[int]:
    """Columns of the classes that a protocol keeps for scoring alone, ascending; mostly none."""
    is_parted = subset.protocol == "base_to_new"
    return base_and_new(range(len(class_names)))[1] if is_parted else []


def with_labels(features: FeatureSource, labels: Int[Tensor, "images classes"]) -> FeatureSource:
    """The same features, shared, under other labels."""
    other = copy.copy(features)
    other.labels = labels
    return other


def _uniform(images: int, seed: int, what: int, column: int = 0) -> np.ndarray:
    """A number in [0, 1) for each row."""
    return np.random.default_rng([seed, what, column]).random(images)


def _lowest(rows: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The rows with the lowest values, in the order given."""
    return rows[np.sort(np.argsort(values, kind="stable")[:count])]


def _of_every_class(
    labels: Tensor, rows: np.ndarray, columns: Sequence[int] | None, shots: int, seed: int
) -> np.ndarray:
    """Rows of which so many show each class."""
    is_shown = (labels[rows] == 1).numpy()
    is_left = np.zeros(len(rows), bool)
    for column in range(labels.shape[1]) if columns is None else columns:
        showing = np.flatnonzero(is_shown[:, column])
        values = _uniform(len(labels), seed, _SHOTS, column)[rows[showing]]
        is_left[_lowest(showing, values, shots)] = True
    if not is_left.any():
        raise ValueError(f"subset.shots {shots}: no image shows any of the classes")
    return rows[is_left]


def _of_protocol(
    subset: Subset, labels: Tensor, rows: np.ndarray, class_names: Sequence[str], seed: int
) -> np.ndarray:
    """Rows of the shots that Dassl draws, of the base classes where they are parted.

    Shots are drawn of all classes before they are parted, as the authors do.
    """
    own = classes_of(labels[rows])
    absent = sorted(set(range(len(class_names))) - set(own))
    if absent:
        raise ValueError(
            f"subset.protocol {subset.protocol}: no training image is of class "
            f"{class_names[absent[0]]!r}"
        )
    drawn = (
        range(len(rows)) if subset.shots is None else draw_shots(own, subset.shots, Random(seed))
    )
    if subset.protocol == "base_to_new":
        base = set(base_and_new(own)[0])
        drawn = [place for place in drawn if own[place] in base]
    chosen: np.ndarray = rows[np.sort(np.array(drawn))]
    return chosen


def classes_of(labels: Int[Tensor, "images classes"]) -> list[int]:
    """The one class of each image.

    Raises:
        ValueError: An image shows none or several, or it is not known.
    """
    strange = int((((labels == 1).sum(1) != 1) | (labels < 0).any(1)).sum())
    if strange:
        raise ValueError(
            f"a few-shot protocol is for images of one class each; {strange:,} of {len(labels):,} "
            "show none, several or unknown ones"
        )
    found: list[int] = labels.argmax(1).tolist()
    return found


def _spoilt(labels: Tensor, subset: Subset, seed: int) -> Tensor:
    """The same labels, some of them turned round or hidden."""
    spoilt = labels.clone()
    noise, known = _blocks(labels, seed, _NOISE), _blocks(labels, seed, _KNOWN)
    for start in range(0, len(labels), _BLOCK):
        part = spoilt[start : start + _BLOCK]
        is_wrong = (next(noise) < subset.label_noise) & (part >= 0)
        part[is_wrong] = 1 - part[is_wrong]
        part[next(known) >= subset.label_fraction] = -1
    return spoilt


def _blocks(labels: Tensor, seed: int, what: int) -> Iterator[Tensor]:
    """A number in [0, 1) for each label, some rows at a time."""
    random = np.random.default_rng([seed, what])
    for start in range(0, len(labels), _BLOCK):
        size = (min(_BLOCK, len(labels) - start), labels.shape[1])
        yield torch.from_numpy(random.random(size))
