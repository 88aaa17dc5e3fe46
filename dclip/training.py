"""Fitting the projectors on cached local features; tensors only, no files, no cluster.

:func:`fit` is the one training loop: a single process, one of several workers, and one trial of a
sweep all run it. Everything random follows from ``(seed, epoch)`` and the row of the image, so a
run that stops between two epochs and goes on from its state ends with the same weights, and several
workers train on what one would.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int, Int64, Shaped
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dclip.logits import presence_probability
from dclip.losses import asymmetric_loss, check_mfi_stability, mfi_loss
from dclip.metrics import inter_class_cosine, mean_average_precision
from dclip.model import DCLIP, DCLIPOutput
from dclip.projectors import ProjectorSizes
from dclip.recipe import Recipe


@runtime_checkable
class FeatureSource(Protocol):
    """Cached local features with their labels; rows are images."""

    labels: Int[Tensor, "images classes"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the locations, cached row by row; a mean token may precede them."""
        ...

    @property
    def views(self) -> int:
        """How many views of every image are cached; view 0 is the clean one, others augmented."""
        ...

    def local(
        self,
        rows: Int64[np.ndarray, " rows"],
        views: Int64[np.ndarray, " rows"] | None = None,
    ) -> Float16[Tensor, "rows locations dim"]:
        """Local features of some rows, in the order given; clean, or each of the view given."""
        ...


class Batch(NamedTuple):
    """What a worker trains on in one step.

    Attributes:
        local: Local features of its images.
        dropped: Locations that take no part, or None if all do.
        labels: 0, 1, or -1 for unknown.
        known: Number of known labels in the shares of all workers.
    """

    local: Float16[Tensor, "images locations dim"]
    dropped: Bool[Tensor, "images locations"] | None
    labels: Int[Tensor, "images classes"]
    known: int


class DivergenceError(RuntimeError):
    """The loss left the finite numbers."""


class Losses(NamedTuple):
    """The objective and its two terms.

    Attributes:
        total: What is minimised: weighted sum of the terms.
        asl: Asymmetric loss, reduced as the recipe says.
        mfi: Mutual-feature-information loss, reduced as the recipe says.
    """

    total: Float[Tensor, ""]
    asl: Float[Tensor, ""]
    mfi: Float[Tensor, ""]


class EpochReport(NamedTuple):
    """What one epoch did.

    Attributes:
        epoch: Number of the epoch, from 1.
        lr: Learning rate during the epoch.
        loss: Mean objective per step.
        asl: Mean asymmetric loss per step.
        mfi: Mean MFI loss per step.
        inter_class_cosine: Mean cosine of the projected positive texts after the epoch.
        val_map: mAP on held-out rows after the epoch; nan where none of them has a class.
        images_per_second: Images trained on per second, over all workers.
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


def build_model(recipe: Recipe, embed_dim: int, *, seed: int) -> DCLIP:
    """Fresh projectors for a backbone of this width; equal seeds give equal weights.

    Args:
        recipe: Source of the projector sizes and of the order of pooling.
        embed_dim: Width D of the backbone's joint space.
        seed: Seed of the initial weights; the global generator is left as it was.
    """
    sizes = ProjectorSizes.for_embed_dim(embed_dim, recipe.output_dim)
    if recipe.hidden_dim is not None:
        sizes = ProjectorSizes(embed_dim, recipe.hidden_dim, sizes.output_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DCLIP(sizes, aggregation=recipe.aggregation)


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Optimizer of the recipe over all parameters, BatchNorm's scale and shift included."""
    if recipe.optimizer == "sgd":
        return SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    return AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)


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


def objective(
    output: DCLIPOutput,
    labels: Shaped[Tensor, "images classes"],
    recipe: Recipe,
    *,
    known: int | None = None,
    share: int = 1,
) -> Losses:
    r""":math:`w\, L_{ASL} + \alpha\, L_{MFI}` of one batch, or of a worker's share of it.

    Args:
        output: Logits and projected texts of the batch.
        labels: 0, 1, or -1 for unknown.
        recipe: Weights, reductions and forms of both losses.
        known: Number of known labels in the whole batch; left out: in ``labels``. Only the mean
            reduction uses it.
        share: Number of workers whose gradients will be *averaged*; ASL is scaled by it, so that
            the average equals the gradient of the whole batch.

    Returns:
        The objective and its terms.
    """
    asl = asymmetric_loss(
        output.pair_logits,
        labels,
        gamma_neg=recipe.gamma_neg,
        gamma_pos=recipe.gamma_pos,
        clip=recipe.clip,
        reduction="sum",
    )
    asl = asl * share
    if recipe.asl_reduction == "mean":
        asl = asl / max(1, int((labels >= 0).sum()) if known is None else known)
    mfi = mfi_loss(
        output.text_features,
        redundancy_weight=recipe.redundancy_weight,
        scope=recipe.mfi_scope,
        gram=recipe.mfi_gram,
        reduction=recipe.mfi_reduction,
    )
    total = recipe.asl_weight * asl
    if recipe.mfi_weight > 0:
        total = total + recipe.mfi_weight * mfi
    return Losses(total, asl, mfi)


def hold_out(num_images: int, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on, both ascending; the same for equal arguments.

    Args:
        num_images: Number of rows.
        fraction: Share of rows held out, in [0, 1).
        seed: Seed of the choice.
    """
    order = np.random.default_rng([seed, 1]).permutation(num_images)
    held = round(num_images * fraction)
    return np.sort(order[held:]), np.sort(order[:held])


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
    parts = []
    for start in range(0, len(rows), batch_size):
        local = features.local(rows[start : start + batch_size])
        local = local.to(texts.device, non_blocking=True).float()
        parts.append(presence_probability(model(local, texts).pair_logits).float().cpu())
    model.train(was_training)
    return torch.cat(parts) if parts else torch.empty(0, len(texts) // 2)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    texts: Float[Tensor, "pairs dim"],
    recipe: Recipe,
    *,
    seed: int,
    val_rows: Int64[np.ndarray, " val"] | None = None,
    first_epoch: int = 0,
    rank: int = 0,
    workers: int = 1,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> None:
    """Train in place, from ``first_epoch`` to the recipe's last.

    Training draws among all cached views (see :func:`epoch_batches`); validation sees the clean
    one.

    Args:
        model: A :class:`~dclip.model.DCLIP`, possibly wrapped in DistributedDataParallel.
        optimizer: Its optimizer, with the state of the epochs already done.
        features: Cached local features of the training split.
        rows: Rows to train on.
        texts: Text features of the prompt pairs, negatives first, on the model's device.
        recipe: Hyper-parameters.
        seed: Seed of the shuffles, views and boxes.
        val_rows: Rows for the ``val_map`` of each report; computed by rank 0 only.
        first_epoch: Number of epochs already done.
        rank: Which worker this is.
        workers: Number of workers; each takes its share of every global batch.
        on_epoch: Called after each epoch.

    Raises:
        DivergenceError: The objective is no longer finite.
        ValueError: The recipe is bound to diverge, there is nothing to train on, or
            ``feature_cutout`` does not suit the grid.
    """
    if len(rows) == 0:
        raise ValueError("there are no images to train on")
    check_recipe(recipe, len(texts) // 2)
    core: DCLIP = model.module if hasattr(model, "module") else model  # type: ignore[assignment]
    for epoch in range(first_epoch, recipe.epochs):
        lr = learning_rate(recipe, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        started = time.perf_counter()
        batches = epoch_batches(
            features, rows, recipe, seed=seed, epoch=epoch, rank=rank, workers=workers
        )
        loss, asl, mfi = _train_epoch(model, optimizer, batches, texts, recipe, workers)
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss} in epoch {epoch + 1} (mfi_weight {recipe.mfi_weight:g}, "
                f"redundancy_weight {recipe.redundancy_weight:g}, {len(texts) // 2} classes, "
                f"lr {recipe.lr:g}); lower lr or mfi_weight, or use the robust preset"
            )
        if on_epoch is not None:
            val_map = math.nan
            if rank == 0 and val_rows is not None and (features.labels[val_rows] == 1).any():
                scores = predict(core, features, val_rows, texts)
                val_map = float(mean_average_precision(scores, features.labels[val_rows]))
            with torch.no_grad():
                positives = core.project_texts(texts, statistics="running")[len(texts) // 2 :]
            cosine = float(inter_class_cosine(positives)) if len(positives) > 1 else math.nan
            speed = len(rows) / max(seconds, 1e-9)
            on_epoch(EpochReport(epoch + 1, lr, loss, asl, mfi, cosine, val_map, speed))


def epoch_batches(
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    workers: int = 1,
) -> Iterator[Batch]:
    """One worker's share of every batch of one epoch, on the CPU.

    Where several views are cached, each row draws one of them, the clean one included. With
    ``recipe.feature_cutout``, each row loses a box of locations around a location drawn (see
    :func:`location_boxes`). Both draws belong to the row: they depend neither on the order of the
    rows, nor on which of them are trained on, nor on the workers.

    Args:
        features: Cached local features.
        rows: Rows to go through once, in a shuffled order.
        recipe: Source of ``batch_size`` and ``feature_cutout``.
        seed: Seed of all draws, together with ``epoch``.
        epoch: Number of the epoch, from 0.
        rank: Which worker this is.
        workers: Number of workers; each takes every ``workers``-th row of every batch.

    Raises:
        ValueError: ``feature_cutout`` is too small for the grid, or the features have other
            locations than the grid and at most one mean token.
    """
    order = np.random.default_rng([seed, 0, epoch]).permutation(rows)
    images = len(features.labels)
    views = centres = None
    if features.views > 1:
        views = np.random.default_rng([seed, 4, epoch]).integers(features.views, size=images)
    if recipe.feature_cutout > 0:
        random = np.random.default_rng([seed, 5, epoch])
        centres = random.integers(features.grid, size=(images, 2))
    for start in range(0, len(order), recipe.batch_size):
        batch = order[start : start + recipe.batch_size]
        mine = batch[rank::workers]
        local = features.local(mine) if views is None else features.local(mine, views[mine])
        dropped = None
        if centres is not None:
            boxes = location_boxes(centres[mine], features.grid, fraction=recipe.feature_cutout)
            dropped = _after_mean_token(boxes, local.shape[1], features.grid)
        known = int((features.labels[batch] >= 0).sum())
        yield Batch(local, dropped, features.labels[mine], known)


def location_boxes(
    centres: Int64[np.ndarray, "images 2"], grid: tuple[int, int], *, fraction: float
) -> Bool[Tensor, "images cells"]:
    """Which cells of a grid lie in a box around a cell: Cutout's box, on the grid of locations.

    Args:
        centres: Row and column of the cell each box is centred on.
        grid: Rows and columns of the grid.
        fraction: Sides of the box as a share of the grid's, in [0, 1), rounded down to whole cells.
            What lies outside the grid is cut off, so that boxes at the border are smaller.

    Returns:
        True inside the box, row by row; never for all cells of an image.

    Raises:
        ValueError: If the box has no cell.

    Example:
        >>> location_boxes(np.array([[0, 2]]), (3, 4), fraction=0.7).view(3, 4).int()
        tensor([[0, 1, 1, 0],
                [0, 0, 0, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    inside = []
    for side, middles in zip(grid, centres.T, strict=True):
        length = int(fraction * side)
        if length == 0:
            raise ValueError(
                f"a box of {fraction:g} of a {grid[0]} x {grid[1]} grid has no location; "
                "use a larger feature_cutout"
            )
        first, cells = middles[:, None] - length // 2, np.arange(side)
        inside.append((first <= cells) & (cells < first + length))
    in_rows, in_columns = inside
    boxes = in_rows[:, :, None] & in_columns[:, None, :]
    return torch.from_numpy(boxes.reshape(len(centres), grid[0] * grid[1]))


def _after_mean_token(
    boxes: Bool[Tensor, "images cells"], locations: int, grid: tuple[int, int]
) -> Bool[Tensor, "images locations"]:
    """The same with the mean token in front, if there is one; it is never dropped."""
    tokens = locations - boxes.shape[1]
    if tokens not in (0, 1):
        raise ValueError(
            f"{locations} locations are not a grid of {grid[0]} x {grid[1]} and at most one mean "
            "token"
        )
    return nn.functional.pad(boxes, (tokens, 0))


def _train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    texts: Tensor,
    recipe: Recipe,
    workers: int,
) -> tuple[float, float, float]:
    """One pass over the batches; mean objective, ASL and MFI per step of the whole batch."""
    model.train()
    device = texts.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    steps = 0
    for batch in batches:
        local = batch.local.to(device, non_blocking=True).float()
        labels = batch.labels.to(device, non_blocking=True)
        dropped = None if batch.dropped is None else batch.dropped.to(device, non_blocking=True)
        output = model(local, texts, dropped)
        losses = objective(output, labels, recipe, known=batch.known, share=workers)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals += torch.stack(losses).detach()
        steps += 1
    if workers > 1:
        torch.distributed.all_reduce(totals)
        totals /= workers
    loss, asl, mfi = (totals / steps).tolist()
    return loss, asl, mfi


def state_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state as one flat dictionary of CPU tensors, for safetensors.

    Names are ``model.<parameter or buffer>`` and ``optimizer.<parameter number>.<slot>``.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if value is not None:
                tensors[f"optimizer.{number}.{slot}"] = torch.as_tensor(value)
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def load_state_tensors(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what :func:`state_tensors` returned, in place.

    Raises:
        RuntimeError: The tensors are those of a model of another shape.
    """
    weights = {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.")
    }
    model.load_state_dict(weights, strict=True)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, slot = rest.partition(".")
            state.setdefault(int(number), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
