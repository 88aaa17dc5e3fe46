"""Scores of every image by what was trained on other images."""

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from dclip.fitting.batches import FeatureSource
from dclip.fitting.fit import fit, scores_of
from dclip.fitting.logistic import fit_logistic
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.method import Method, Task, initial

_SURE = 1e-6  # probabilities beyond which log-odds are cut
_C = 100.0  # of the calibration, whose inputs have unit deviation


def draw_folds(
    groups: Int64[np.ndarray, " images"], folds: int, *, seed: int
) -> Int64[np.ndarray, " images"]:
    """A fold for each image; images of a group share one, and folds are about equally large.

    Args:
        groups: A number each; copies of one picture have the same.
        folds: How many, 2 or more.
        seed: Of the draw.

    Raises:
        ValueError: There are fewer groups than folds.

    Example:
        >>> draw_folds(np.array([0, 1, 0, 2]), 2, seed=0).tolist()
        [1, 0, 1, 0]
    """
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if folds < 2 or len(sizes) < folds:
        raise ValueError(f"{len(sizes)} images that are no copies make no {folds} folds")
    fold_of_group = np.empty(len(sizes), np.int64)
    filled = [(0, fold) for fold in range(folds)]
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        size, smallest = heapq.heappop(filled)
        fold_of_group[group] = smallest
        heapq.heappush(filled, (size + int(sizes[group]), smallest))
    fold: np.ndarray = fold_of_group[members]
    return fold


def out_of_fold(
    kind: type[Method[Any]],
    settings: Any,
    loop: Loop,
    task: Task,
    features: FeatureSource,
    folds: Int64[np.ndarray, " images"],
    *,
    seed: int = 0,
    device: str = "cpu",
    done: Callable[[int], None] = lambda _: None,
) -> Float[Tensor, "images classes"]:
    """Scores of the images of each fold, by a method that was trained on those of all others.

    Args:
        kind: The method.
        settings: Its settings.
        loop: How it is trained, if the loop trains it.
        task: Classes.
        features: Of all images; labels of -1 cost nothing.
        folds: Of each image; see `draw_folds`.
        seed: Of initial weights and shuffles.
        device: Where it is trained.
        done: Called after each fold with the number of its images.

    Raises:
        ValueError: The features cannot train the method.
        DivergenceError: The loss of a fold left the finite numbers.
    """
    scores = torch.zeros(len(folds), len(task.class_names))
    for fold in np.unique(folds):
        rows, left = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if settings.trained_by == "itself":
            method = initial(kind, settings, task, seed=seed).on(device)
            method.fit(features, rows, seed=seed)
        elif settings.trained_by is None:
            method = initial(kind, settings, task, seed=seed).on(device)
        else:
            pack = Pack(kind, [settings], loop, task, seeds=[seed], device=device)
            fit(pack, features, rows, seed=seed)
            method = pack.method()
        scores[torch.from_numpy(left)] = scores_of(method, features, left)
        done(len(left))
    return scores


def platt_scaled(
    scores: Float[Tensor, "images classes"],
    labels: Int[Tensor, "images classes"],
    *,
    are_probabilities: bool,
) -> Float64[Tensor, "images classes"]:
    r"""Probabilities by scores of other images: :math:`\sigma(a_k s + b_k)`, fitted for each class.

    Where all known labels of a class are alike, its probability is that of Laplace's rule.

    Args:
        scores: Out of fold.
        labels: 1, 0, or -1 for unknown.
        are_probabilities: Whether scores are; then :math:`s` is their log-odds.

    References:
        Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    values = scores.double()
    if are_probabilities:
        values = torch.logit(values.clamp(_SURE, 1 - _SURE))
    deviation = values.std(0, correction=0)
    values = (values - values.mean(0)) / torch.where(deviation > 0, deviation, 1)
    columns = []
    for column in range(values.shape[1]):
        own = values[:, column : column + 1]
        fitted = fit_logistic(own, labels[:, column : column + 1], c=_C)
        columns.append((own @ fitted.weight.mT + fitted.bias).sigmoid())
    return torch.cat(columns, dim=1)


def without(
    labels: Int[Tensor, "images classes"],
    rows: Int64[np.ndarray, " places"],
    columns: Int64[np.ndarray, " places"],
) -> Int[Tensor, "images classes"]:
    """Labels of which some are unknown."""
    left = labels.clone()
    left[torch.from_numpy(rows), torch.from_numpy(columns)] = -1
    return left
