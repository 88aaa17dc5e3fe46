"""Few-shot recognition as Dassl and CoOp draw it: shots by seed, splits, base and new classes.

Draws are those of Python's ``random``, seeded once and used in the order of the authors' code, so
that equal lists of images give equal shots.

References:
    Zhou et al., "Learning to Prompt for Vision-Language Models" (CoOp), IJCV 2022,
    arXiv:2109.01134; KaiyangZhou/Dassl.pytorch and KaiyangZhou/CoOp.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from dclip.words import counted

SPLIT_SEED = 1
"""Seed of a split that is made, where there is no file of it."""

MOST_VAL_SHOTS = 4


class Shots(NamedTuple):
    """Positions in the lists of training and of validation images, in the order drawn."""

    train: list[int]
    val: list[int]


def draw_shots(labels: Sequence[int], shots: int, random: Random) -> list[int]:
    """So many images of each class, or all of a class that has fewer.

    Args:
        labels: The one class of each image.
        shots: Of each class.
        random: Source; it goes on where it stands.

    Returns:
        Positions, class by class in the order in which classes first appear.

    Example:
        >>> draw_shots([1, 0, 1, 0, 1], 2, Random(1))
        [0, 4, 3, 1]
    """
    drawn = []
    for own in _by_class(labels).values():
        drawn += random.sample(own, shots) if len(own) >= shots else own
    return drawn


def few_shot(train: Sequence[int], val: Sequence[int], *, shots: int, seed: int) -> Shots:
    """The few shots of a seed: those to train on, then those to validate on, at most 4 a class.

    Args:
        train: Classes of the training images.
        val: Classes of the validation images.
        shots: Of each class, 1 or more.
        seed: Of the draw; published runs take 1, 2 and 3.

    Raises:
        ValueError: Fewer than one shot.
    """
    if shots < 1:
        raise ValueError(f"shots must be 1 or more, got {shots}")
    random = Random(seed)
    first = draw_shots(train, shots, random)
    return Shots(first, draw_shots(val, min(shots, MOST_VAL_SHOTS), random))


def split_off(
    labels: Sequence[int],
    random: Random,
    *,
    fraction: float = 0.2,
    names: Sequence[str] = (),
) -> tuple[list[int], list[int]]:
    """Training images parted 80/20, class by class: CoOp's where test images are given.

    Args:
        labels: The one class of each image.
        random: Source.
        fraction: Share of the validation images of each class, rounded as Python rounds.
        names: Of the classes, for messages.

    Returns:
        Positions of training and of validation images.

    Raises:
        ValueError: A class has so few images that none would be left to validate on.
    """
    train: list[int] = []
    val: list[int] = []
    for label, own in _by_class(labels).items():
        number = round(len(own) * fraction)
        if not number:
            raise ValueError(_too_few(label, names, len(own), "80/20"))
        random.shuffle(own)
        val += own[:number]
        train += own[number:]
    return train, val


def split_in_three(
    labels: Sequence[int],
    random: Random,
    *,
    train: float = 0.5,
    val: float = 0.2,
    names: Sequence[str] = (),
) -> tuple[list[int], list[int], list[int]]:
    """Images parted 50/20/30, class by class in the order of their numbers: CoOp's of one folder.

    Args:
        labels: The one class of each image.
        random: Source.
        train: Share of the training images of each class, rounded as Python rounds.
        val: Share of the validation images.
        names: Of the classes, for messages.

    Returns:
        Positions of training, validation and test images.

    Raises:
        ValueError: A class has so few images that a part would have none.
    """
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label, own in sorted(_by_class(labels).items()):
        random.shuffle(own)
        first, second = round(len(own) * train), round(len(own) * val)
        pieces = own[:first], own[first : first + second], own[first + second :]
        if not all(pieces):
            raise ValueError(_too_few(label, names, len(own), "50/20/30"))
        for part, piece in zip(parts, pieces, strict=True):
            part += piece
    return parts


def base_and_new(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Base classes and new ones: the first half of those there are, and the others.

    Args:
        labels: Classes of the training images, as far as they were drawn.

    Returns:
        Both ascending; of an odd number the base classes are one more.

    Example:
        >>> base_and_new([7, 3, 3, 5])
        ([3, 5], [7])
    """
    found = sorted(set(labels))
    half = math.ceil(len(found) / 2)
    return found[:half], found[half:]


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    """Positions of each class, which stand in the order in which they first appear."""
    found: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        found.setdefault(int(label), []).append(position)
    return found


def _too_few(label: int, names: Sequence[str], images: int, shares: str) -> str:
    told = repr(names[label]) if names else f"number {label}"
    return (
        f"class {told} has {counted(images, 'image')}, too few to be parted {shares}; add "
        "images, or leave it out"
    )
