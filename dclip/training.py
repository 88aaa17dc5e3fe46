"""Fitting the projectors on cached local features; tensors only, no files, no cluster.

:func:`fit` is the one training loop. It trains a :class:`~dclip.trials.Training`: the projectors of
one trial, or of several that differ in little and share every pass over the features. A single
process, one of several workers, and a sweep all run it.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dclip.batches import (
    FeatureSource,
    clean_batches,
    epoch_batches,
    location_boxes,
    prefetch,
)
from dclip.logits import presence_probability
from dclip.losses import check_mfi_stability
from dclip.losses.asymmetric import check_labels
from dclip.metrics import mean_average_precision
from dclip.model import DCLIP
from dclip.recipe import Recipe
from dclip.trials import Training


class DivergenceError(RuntimeError):
    """The loss left the finite numbers."""


class EpochReport(NamedTuple):
    """What one epoch did to one trial.

    Attributes:
        epoch: Number of the epoch, from 1.
        lr: Learning rate during the epoch.
        loss: Mean objective per step; not finite once the trial has diverged (see
            :attr:`dclip.Training.diverged`).
        asl: Mean asymmetric loss per step.
        mfi: Mean MFI loss per step.
        inter_class_cosine: Mean cosine of the projected positive texts after the epoch.
        val_map: mAP on held-out rows after the epoch; nan where none of them has a class.
        images_per_second: Images trained on per second, over all workers, for all trials at once.
    """

    epoch: int
    lr: float
    loss: float
    asl: float
    mfi: float
    inter_class_cosine: float
    val_map: float
    images_per_second: float


def check_recipe(recipe: Recipe, num_classes: int) -> None:
    """Refuse, before any work, a recipe that is bound to diverge with this many classes.

    Raises:
        ValueError: SGD on the summed MFI loss would step too far (see
            :func:`dclip.losses.check_mfi_stability`); the message names the remedy.
    """
    if recipe.optimizer == "sgd" and recipe.mfi_reduction == "sum":
        check_mfi_stability(
            alpha=recipe.mfi_weight,
            num_classes=num_classes,
            learning_rate=recipe.lr,
            redundancy_weight=recipe.redundancy_weight,
        )


def divergence(training: Training, trial: int = 0) -> str:
    """Where a trial diverged, with which settings, and what to change; in one line."""
    epoch, step = training.diverged[trial]
    recipe = training.recipes[trial]
    other = ", or use the robust preset" if recipe.preset != "robust" else ""
    return (
        f"the loss is not a finite number from step {step} of epoch {epoch} on (mfi_weight "
        f"{recipe.mfi_weight:g}, redundancy_weight {recipe.redundancy_weight:g}, "
        f"{len(training.texts) // 2} classes, lr {recipe.lr:g}); lower lr or mfi_weight{other}"
    )


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of one epoch: constant warm-up, then a cosine that starts at its peak.

    As in the authors' runs, the cosine counts from the end of the warm-up and has the length of
    the whole training, so that the last epochs keep a small rate.

    Args:
        recipe: Source of ``lr``, ``warmup_lr``, ``warmup_epochs`` and ``epochs``.
        epoch: Number of the epoch, from 0.

    Example:
        >>> recipe = Recipe(preset="author")
        >>> learning_rate(recipe, 0), learning_rate(recipe, 1), round(learning_rate(recipe, 26), 6)
        (1e-05, 0.002, 0.001)
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr
    turn = math.pi * (epoch - recipe.warmup_epochs) / recipe.epochs
    return 0.5 * recipe.lr * (1 + math.cos(turn))


@torch.no_grad()
def predict(
    model: DCLIP,
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    texts: Float[Tensor, "pairs dim"],
    *,
    batch_size: int = 256,
) -> Float[Tensor, "rows classes"]:
    """Probability of presence of every class in every given row, on the CPU.

    Args:
        model: Trained projectors; the mode they are in is restored afterwards.
        features: Cached local features.
        rows: Rows to look at.
        texts: Text features of the prompt pairs, negatives first, on the model's device.
        batch_size: Rows per forward pass.
    """
    was_training = model.training
    model.eval()
    parts = [
        presence_probability(model(local, texts).pair_logits).float().cpu()
        for local in clean_batches(features, rows, texts.device, batch_size)
    ]
    model.train(was_training)
    return torch.cat(parts) if parts else torch.empty(0, len(texts) // 2)


def fit(
    training: Training,
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    *,
    seed: int,
    val_rows: Int64[np.ndarray, " val"] | None = None,
    rank: int = 0,
    workers: int = 1,
    on_epoch: Callable[[list[EpochReport]], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> None:
    """Train in place, from where the training stands to the last epoch of its recipe.

    Batches draw among all cached views (see :func:`dclip.batches.epoch_batches`); validation sees
    the clean one.

    Args:
        training: Trials to train, fresh or restored.
        features: Cached local features of the training split.
        rows: Rows to train on.
        seed: Seed of the shuffles, views and boxes, which all trials share.
        val_rows: Rows for the ``val_map`` of each report; computed by rank 0 only.
        rank: Which worker this is.
        workers: Number of workers, joined in the default process group of ``torch.distributed``;
            each takes its share of every batch, and gradients are summed over all.
        on_epoch: Called after each epoch with one report a trial.
        on_step: Called after each step but an epoch's last; the training may be saved there.

    Raises:
        DivergenceError: No trial's objective is finite any more; the state is that of the epoch's
            last step. Where some are, the others are in ``training.diverged`` and take no part.
        ValueError: See :func:`check_training`; or workers do not stand at one place with the same
            weights (see :func:`share_state`).
    """
    check_training(training, features, rows, val_rows)
    if workers > 1:
        _check_place(training, workers)
    recipe = training.recipe
    while training.epoch < recipe.epochs:
        lr = learning_rate(recipe, training.epoch)
        for group in training.optimizer.param_groups:
            group["lr"] = lr
        started, first = time.perf_counter(), training.step
        steps = -(-len(rows) // recipe.batch_size)
        batches = epoch_batches(
            features,
            rows,
            recipe,
            seed=seed,
            epoch=training.epoch,
            first_step=first,
            rank=rank,
            workers=workers,
        )
        for batch in prefetch(batches, training.device):
            output = training.forward(batch.local.float(), batch.dropped)
            losses = training.objectives(output, batch.labels, known=batch.known, workers=workers)
            training.optimizer.zero_grad(set_to_none=True)
            losses.total.sum().backward()  # type: ignore[no-untyped-call]
            values = torch.stack(losses, dim=1).detach()
            if workers > 1:
                gradients = [weight.grad for weight in training.weights if weight.grad is not None]
                _sum_over_workers([*gradients, values])
            training.optimizer.step()
            training.average_in()
            training.count_step(values)
            if on_step is not None and training.step < steps:
                on_step()
        means = training.mean_losses()
        seconds = time.perf_counter() - started
        speed = (len(rows) - first * recipe.batch_size) / max(seconds, 1e-9)
        if len(training.diverged) == len(training):
            last = max(training.diverged, key=lambda trial: training.diverged[trial])
            raise DivergenceError(divergence(training, last))
        val_maps = [math.nan] * len(training)
        if rank == 0 and val_rows is not None and (features.labels[val_rows] == 1).any():
            val_maps = _val_maps(training, features, val_rows)
        training.end_epoch(val_maps)
        if on_epoch is not None:
            cosines = training.inter_class_cosines()
            on_epoch(
                [
                    EpochReport(training.epoch, lr, loss, asl, mfi, cosine, val_map, speed)
                    for (loss, asl, mfi), cosine, val_map in zip(
                        means, cosines, val_maps, strict=True
                    )
                ]
            )


def check_training(
    training: Training,
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    val_rows: Int64[np.ndarray, " val"] | None = None,
) -> None:
    """Refuse, before any work, what :func:`fit` of the same arguments could not do.

    Raises:
        ValueError: A recipe is bound to diverge, there is nothing to train on or, for
            ``best_on_val``, to choose the epoch by, labels are not those of the texts' classes, or
            ``feature_cutout`` does not suit the grid.
    """
    for recipe in training.recipes:
        check_recipe(recipe, len(training.texts) // 2)
    check_source(training.texts, features, rows)
    check_settings(training.recipe, features, val_rows)


def check_source(
    texts: Float[Tensor, "pairs dim"], features: FeatureSource, rows: Int64[np.ndarray, " rows"]
) -> None:
    """Refuse features that no recipe could be trained on.

    Raises:
        ValueError: There is nothing to train on, or labels are not those of the texts' classes.
    """
    if len(rows) == 0:
        raise ValueError("there are no images to train on")
    if 2 * features.labels.shape[1] != len(texts):
        raise ValueError(
            f"labels of {features.labels.shape[1]} classes do not go with texts of "
            f"{len(texts) / 2:g}; use texts of the classes the features are labelled with"
        )
    check_labels(features.labels)


def check_settings(
    recipe: Recipe, features: FeatureSource, val_rows: Int64[np.ndarray, " val"] | None
) -> None:
    """Refuse a recipe that does not suit these features.

    Raises:
        ValueError: There is nothing to choose the epoch by, for ``best_on_val``, or
            ``feature_cutout`` does not suit the grid.
    """
    if recipe.selection == "best_on_val" and not (
        val_rows is not None and (features.labels[val_rows] == 1).any()
    ):
        raise ValueError(
            "selection best_on_val: none of the held-out images has a class to choose the epoch "
            "by; raise val_fraction, or use selection last"
        )
    if recipe.feature_cutout > 0:
        middle = np.zeros((1, 2), np.int64)
        location_boxes(middle, features.grid, fraction=recipe.feature_cutout)


def share_state(training: Training, rank: int) -> None:
    """Let every worker go on from where the first one stands, with its weights and optimizer.

    Workers of one training that each read a kept state by themselves may find different ones, and
    fresh weights may differ in their last bits between machines.

    Args:
        training: Equal trials on every worker; only those of rank 0 need be restored.
        rank: Which worker this is, in the default process group of ``torch.distributed``.

    Raises:
        ValueError: The trials of this worker are others than those of rank 0.
    """
    data = torch.empty(0, dtype=torch.uint8)
    if rank == 0:
        data = torch.frombuffer(
            bytearray(safetensors.torch.save(training.state_tensors())), dtype=torch.uint8
        )
    size = torch.tensor(len(data), device=training.device)
    torch.distributed.broadcast(size, 0)
    sent = data.to(training.device) if rank == 0 else data.new_empty(int(size)).to(training.device)
    torch.distributed.broadcast(sent, 0)
    if rank != 0:
        training.load_state_tensors(safetensors.torch.load(sent.cpu().numpy().tobytes()))


def _check_place(training: Training, workers: int) -> None:
    """Refuse workers that would sum the gradients of different steps or weights.

    Raises:
        ValueError: They do not stand at one epoch and step, or their weights differ.
    """
    content = hashlib.sha256()
    for weight in training.weights:
        content.update(weight.detach().cpu().numpy().tobytes())
    digest = int.from_bytes(content.digest()[:7], "big")
    own = torch.tensor([training.epoch, training.step, digest], device=training.device)
    places = [torch.empty_like(own) for _ in range(workers)]
    torch.distributed.all_gather(places, own)
    (epoch, step, weights), *others = (place.tolist() for place in places)
    for rank, other in enumerate(others, 1):
        if other[:2] != [epoch, step]:
            raise ValueError(
                f"worker {rank} stands at epoch {other[0]}, step {other[1]}, worker 0 at epoch "
                f"{epoch}, step {step}; workers of one training go on from one state"
            )
        if other[2] != weights:
            raise ValueError(
                f"the weights of worker {rank} at epoch {epoch}, step {step} are not those of "
                "worker 0; workers of one training go on from one state"
            )


def _sum_over_workers(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over the workers, in place and in one message."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, total in zip(tensors, torch.split(flat, sizes), strict=True):
        tensor.copy_(total.view_as(tensor))


def _val_maps(
    training: Training,
    features: FeatureSource,
    rows: Int64[np.ndarray, " val"],
) -> list[float]:
    """Held-out mAP of every trial; nan for one that has diverged."""
    labels = features.labels[rows]
    return [
        math.nan
        if trial in training.diverged or scores.isnan().any()
        else mean_average_precision(scores, labels)
        for trial, scores in enumerate(training.predict(features, rows))
    ]
