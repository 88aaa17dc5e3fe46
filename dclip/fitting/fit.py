"""The training loop; tensors only, no files, no cluster.

:func:`fit` is the one loop. It trains a :class:`~dclip.fitting.pack.Pack`: one training, or several
of a method that differ in little and share every pass over the features. A single process, one of
several workers, and a sweep all run it.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dclip.fitting.batches import (
    FeatureSource,
    clean_batches,
    epoch_batches,
    location_boxes,
    parts_of,
    prefetch,
)
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.losses.asymmetric import check_labels
from dclip.methods.method import Method
from dclip.metrics import mean_average_precision


class DivergenceError(RuntimeError):
    """The loss left the finite numbers."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did to one member.

    Attributes:
        epoch: Number of the epoch, from 1.
        lr: Learning rate during the epoch; of the schedule ``step`` that of its last step.
        losses: Means per step, the loss that is minimised first, then its terms; not finite once
            the member has diverged (see :attr:`dclip.fitting.pack.Pack.diverged`).
        watched: What the method says is worth watching, after the epoch.
        val_map: mAP on held-out rows after the epoch; nan where none of them has a class.
        images_per_second: Images trained on per second, over all workers, for the whole pack.
    """

    epoch: int
    lr: float
    losses: Mapping[str, float]
    watched: Mapping[str, float]
    val_map: float
    images_per_second: float

    @property
    def loss(self) -> float:
        """Mean per step of the loss that is minimised."""
        return next(iter(self.losses.values()))

    def line(self) -> dict[str, float]:
        """All values by name, as a history keeps them; those that are nan are left out."""
        values = {
            "epoch": self.epoch,
            "lr": self.lr,
            **self.losses,
            **self.watched,
            "val_map": self.val_map,
            "images_per_second": self.images_per_second,
        }
        return {name: value for name, value in values.items() if value == value}


def divergence(pack: Pack, member: int = 0) -> str:
    """Where a member diverged, with which settings, and what to change; in one line."""
    epoch, step = pack.diverged[member]
    settings, loop = pack.settings[member], pack.loop
    values = {name: getattr(settings, name) for name in settings.bold}
    bold = "".join(f"{name} {value:g}, " for name, value in values.items() if value is not None)
    lower = " or ".join(["lr", *settings.bold[:1]])
    other = ", or use the robust preset" if loop.preset == "author" else ""
    return (
        f"the loss is not a finite number from step {step} of epoch {epoch} on ({bold}"
        f"{pack.num_classes} classes, lr {loop.lr:g}); lower {lower}{other}"
    )


def learning_rate(loop: Loop, epoch: int) -> float:
    """Learning rate of one epoch: constant warm-up, then a cosine that starts at its peak.

    As in the authors' runs, the cosine counts from the end of the warm-up and has the length of
    the whole training, so that the last epochs keep a small rate.

    Args:
        loop: Source of ``lr``, ``warmup_lr``, ``warmup_epochs`` and ``epochs``.
        epoch: Number of the epoch, from 0.

    Example:
        >>> loop = Loop(epochs=50, lr=0.002, warmup_lr=1e-5)
        >>> learning_rate(loop, 0), learning_rate(loop, 1), round(learning_rate(loop, 26), 6)
        (1e-05, 0.002, 0.001)
    """
    if epoch < loop.warmup_epochs:
        return loop.warmup_lr
    turn = math.pi * (epoch - loop.warmup_epochs) / loop.epochs
    return 0.5 * loop.lr * (1 + math.cos(turn))


def step_learning_rate(loop: Loop, step: int, steps: int, *, warms_up: bool = True) -> float:
    """Learning rate of one step of the schedule ``step``: linear warm-up, then a cosine to zero.

    Args:
        loop: Source of ``lr`` and ``warmup_steps``.
        step: Number of the step in the whole training, from 0.
        steps: How many there are in all.
        warms_up: False: the cosine begins at once.

    Example:
        >>> loop = Loop(lr=1e-3, schedule="step", warmup_steps=2)
        >>> [round(step_learning_rate(loop, step, 6), 6) for step in range(6)]
        [0.0005, 0.001, 0.001, 0.000854, 0.0005, 0.000146]
    """
    warmup = loop.warmup_steps if warms_up else 0
    if step < warmup:
        return loop.lr * (step + 1) / warmup
    turn = math.pi * (step - warmup) / max(1, steps - warmup)
    return 0.5 * loop.lr * (1 + math.cos(turn))


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """Seed of what a method draws in one step, so that a resumed training draws it again.

    Args:
        seed: Of the training's data.
        epoch: Number of the epoch, from 0.
        step: Number of the step in it, from 0.
        rank: Which worker draws: each has images of its own.
    """
    return int(np.random.SeedSequence([seed, 6, epoch, step, rank]).generate_state(1)[0])


@torch.no_grad()
def scores_of(
    method: Method[Any],
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    *,
    batch_size: int = 256,
) -> Float[Tensor, "rows classes"]:
    """Scores of every class in every given row, on the CPU.

    Args:
        method: Trained where it needs to be; the mode it is in is restored afterwards.
        features: What it is fed.
        rows: Rows to look at.
        batch_size: Rows per forward pass.
    """
    was_training = method.training
    method.eval()
    device, feeds = method.task.pairs.device, method.settings.scoring_feeds()
    if method.settings.image_form == "native":
        batch_size = 1
    parts = [
        method.scores(batch).float().cpu()
        for batch in clean_batches(features, rows, device, batch_size, feeds)
    ]
    method.train(was_training)
    return torch.cat(parts) if parts else torch.empty(0, len(method.task.class_names))


def fit(
    pack: Pack,
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
    """Train in place, from where it stands to the last epoch.

    Batches draw among all cached views (see :func:`dclip.fitting.batches.epoch_batches`);
    validation sees the clean one.

    Args:
        pack: What to train, fresh or restored.
        features: Features of the training split.
        rows: Rows to train on.
        seed: Seed of the shuffles, views, boxes, and of what the method draws in its losses, which
            all members share.
        val_rows: Rows for the ``val_map`` of each report; computed by rank 0 only.
        rank: Which worker this is.
        workers: Number of workers, joined in the default process group of ``torch.distributed``;
            each takes its share of every batch, and gradients are summed over all.
        on_epoch: Called after each epoch with one report a member.
        on_step: Called after each step but an epoch's last; the pack may be saved there.

    Raises:
        DivergenceError: No member's loss is finite any more; the state is that of the epoch's
            last step. Where some are, the others are in ``pack.diverged`` and take no part.
        ValueError: See :func:`check_training`; or workers do not stand at one step with the same
            weights (see :func:`share_state`).
    """
    check_training(pack, features, rows, val_rows)
    if pack.epoch == pack.step == 0:
        pack.prepare(features, rows)  # every worker by itself, on the same images
    if workers > 1:
        _check_step(pack, workers)
    loop = pack.loop
    while pack.epoch < loop.epochs:
        started, first = time.perf_counter(), pack.step
        steps = -(-len(rows) // loop.batch_size)
        lr = _set_rates(pack, steps)
        batches = epoch_batches(
            features,
            rows,
            loop,
            seed=seed,
            epoch=pack.epoch,
            first_step=first,
            rank=rank,
            workers=workers,
            feeds=pack.settings[0].training_feeds(),
        )
        for batch in prefetch(batches, pack.device):
            lr = _set_rates(pack, steps)
            pack.optimizer.zero_grad()
            drawn = step_seed(seed, pack.epoch, pack.step, rank)
            values = torch.zeros(())
            for part, share in enumerate(parts_of(batch, loop.accumulate)):
                losses = pack.losses(share._replace(local=share.local.float()), seed=drawn + part)
                pack.backward(losses)
                values = losses.detach() if part == 0 else values + losses.detach()
            if workers > 1:
                gradients = [weight.grad for weight in pack.weights if weight.grad is not None]
                _sum_over_workers([*gradients, values])
            pack.take_step()
            pack.count_step(values)
            if on_step is not None and pack.step < steps:
                on_step()
        means = pack.mean_losses()
        seconds = time.perf_counter() - started
        speed = (len(rows) - first * loop.batch_size) / max(seconds, 1e-9)
        if len(pack.diverged) == len(pack):
            last = max(pack.diverged, key=lambda member: pack.diverged[member])
            raise DivergenceError(divergence(pack, last))
        val_maps = [math.nan] * len(pack)
        if rank == 0 and val_rows is not None and (features.labels[val_rows] == 1).any():
            val_maps = _val_maps(pack, features, val_rows)
        pack.end_epoch(val_maps)
        if on_epoch is not None:
            watched = pack.watch()
            on_epoch(
                [
                    EpochReport(pack.epoch, lr, losses, watch, val_map, speed)
                    for losses, watch, val_map in zip(means, watched, val_maps, strict=True)
                ]
            )


def _set_rates(pack: Pack, steps: int) -> float:
    """Let the pack step as fast as the schedule says where it stands; the rate.

    Args:
        pack: At the epoch and step that are to be done.
        steps: In an epoch.
    """
    loop = pack.loop
    if loop.schedule == "epoch":
        lr = learning_rate(loop, pack.epoch)
        pack.set_lr(lr, is_warmup=pack.epoch < loop.warmup_epochs)
        return lr
    now, every = pack.epoch * steps + pack.step, loop.epochs * steps
    lr = step_learning_rate(loop, now, every)
    pack.set_step_lr(lr, step_learning_rate(loop, now, every, warms_up=False))
    return lr


def check_training(
    pack: Pack,
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    val_rows: Int64[np.ndarray, " val"] | None = None,
) -> None:
    """Refuse, before any work, what :func:`fit` of the same arguments could not do.

    Raises:
        ValueError: Settings are bound to diverge, there is nothing to train on or, for
            ``best_on_val``, to choose the epoch by, labels are not of the classes, or
            ``feature_cutout`` does not suit the grid.
    """
    for settings in pack.settings:
        pack.kind.check(settings, pack.loop, pack.num_classes)
    check_source(pack.num_classes, features, rows)
    check_loop(pack.loop, features, val_rows)


def check_source(
    num_classes: int, features: FeatureSource, rows: Int64[np.ndarray, " rows"]
) -> None:
    """Refuse features that nothing could be trained on.

    Raises:
        ValueError: There is nothing to train on, or labels are of another number of classes.
    """
    if len(rows) == 0:
        raise ValueError("there are no images to train on")
    if features.labels.shape[1] != num_classes:
        raise ValueError(
            f"labels of {features.labels.shape[1]} classes do not go with texts of {num_classes}; "
            "use texts of the classes the features are labelled with"
        )
    check_labels(features.labels)


def check_loop(
    loop: Loop, features: FeatureSource, val_rows: Int64[np.ndarray, " val"] | None
) -> None:
    """Refuse settings of the loop that do not suit these features.

    Raises:
        ValueError: There is nothing to choose the epoch by, for ``best_on_val``, or
            ``feature_cutout`` does not suit the grid.
    """
    if loop.selection == "best_on_val" and not (
        val_rows is not None and (features.labels[val_rows] == 1).any()
    ):
        raise ValueError(
            "selection best_on_val: none of the held-out images has a class to choose the epoch "
            "by; raise val_fraction, or use selection last"
        )
    if loop.feature_cutout > 0:
        middle = np.zeros((1, 2), np.int64)
        location_boxes(middle, features.grid, fraction=loop.feature_cutout)


def share_state(pack: Pack, rank: int) -> None:
    """Let every worker go on from where the first one stands, with its weights and optimizer.

    Workers of one training that each read a kept state by themselves may find different ones, and
    fresh weights may differ in their last bits between machines.

    Args:
        pack: An equal pack on every worker; only that of rank 0 need be restored.
        rank: Which worker this is, in the default process group of ``torch.distributed``.

    Raises:
        ValueError: The members of this worker are others than those of rank 0.
    """
    data = torch.empty(0, dtype=torch.uint8)
    if rank == 0:
        data = torch.frombuffer(
            bytearray(safetensors.torch.save(pack.state_tensors())), dtype=torch.uint8
        )
    size = torch.tensor(len(data), device=pack.device)
    torch.distributed.broadcast(size, 0)
    sent = data.to(pack.device) if rank == 0 else data.new_empty(int(size)).to(pack.device)
    torch.distributed.broadcast(sent, 0)
    if rank != 0:
        pack.load_state_tensors(safetensors.torch.load(sent.cpu().numpy().tobytes()))


def _check_step(pack: Pack, workers: int) -> None:
    """Refuse workers that would sum the gradients of different steps or weights.

    Raises:
        ValueError: They do not stand at one epoch and step, or their weights differ.
    """
    content = hashlib.sha256()
    for weight in pack.weights:
        content.update(weight.detach().cpu().numpy().tobytes())
    digest = int.from_bytes(content.digest()[:7], "big")
    own = torch.tensor([pack.epoch, pack.step, digest], device=pack.device)
    stands = [torch.empty_like(own) for _ in range(workers)]
    torch.distributed.all_gather(stands, own)
    (epoch, step, weights), *others = (one.tolist() for one in stands)
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
    pack: Pack,
    features: FeatureSource,
    rows: Int64[np.ndarray, " val"],
) -> list[float]:
    """Held-out mAP of every member; nan for one that has diverged."""
    labels = features.labels[rows]
    return [
        math.nan
        if member in pack.diverged or scores.isnan().any()
        else mean_average_precision(scores, labels)
        for member, scores in enumerate(pack.predict(features, rows))
    ]
