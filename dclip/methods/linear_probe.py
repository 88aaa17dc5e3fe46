"""Linear probe: what a linear classifier on frozen local features gets without any text."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.fitting.batches import Batch, FeatureSource
from dclip.fitting.optimizer import AdamW, WeightGroup
from dclip.methods.method import Method, Task
from dclip.methods.settings import LinearProbeSettings, MethodSettings

LabelledBatches = Callable[
    [],
    Iterable[tuple[Float[Tensor, "images locations dim"], Shaped[Tensor, "images classes"]]],
]
"""Starts one pass over the training data: local features with label vectors (1, 0 or -1)."""


class LinearProbe(nn.Module):
    """One linear classifier per class, applied at every location; an image scores its best.

    Args:
        embed_dim: Width of the local features.
        num_classes: Number of classes.
    """

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, embed_dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes"]:
        """Logit of each class at the location where it is highest.

        Args:
            local: Local features, unnormalised.

        Returns:
            Logits; their sigmoid is a probability of presence.
        """
        return F.linear(local.to(self.weight.dtype), self.weight, self.bias).amax(dim=1)


def fit_linear_probe(
    batches: LabelledBatches,
    *,
    embed_dim: int,
    num_classes: int,
    epochs: int = 25,
    learning_rate: float = 0.01,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear probe by AdamW on binary cross-entropy, with a cosine schedule over epochs.

    The data is passed over ``epochs + 1`` times and never held: the first pass measures mean and
    standard deviation of every channel over all locations. The fit then works on standardised
    channels, and the standardisation ends up inside the weights.

    Args:
        batches: Called once a pass; returns batches of local features and label vectors. Unknown
            labels (-1) cost nothing. The order of the batches is the caller's; batches of a few
            hundred images suit the default learning rate.
        embed_dim: Width of the local features.
        num_classes: Number of classes.
        epochs: Passes of training, at least 1.
        learning_rate: Step size of the first epoch, above 0.
        weight_decay: Decoupled decay of the weights (not of the biases) on standardised channels.
        seed: Draws the initial weights; the same seed and batches give the same probe.

    Returns:
        The probe in evaluation mode, on the device of the features.

    Raises:
        ValueError: If there is no feature, a shape does not match, ``epochs`` is below 1 or
            ``learning_rate`` not above 0.
    """
    if epochs < 1 or not learning_rate > 0:
        raise ValueError(
            "epochs must be at least 1 and learning_rate above 0, got "
            f"epochs={epochs}, learning_rate={learning_rate}"
        )
    mean, std = _channel_statistics(batches, embed_dim=embed_dim, num_classes=num_classes)
    device = mean.device
    probe = LinearProbe(embed_dim, num_classes).to(device)

    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(embed_dim)
    weight = torch.empty(num_classes, embed_dim).uniform_(-bound, bound, generator=generator)
    weight = weight.to(device).requires_grad_()
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    groups = [
        WeightGroup([weight], learning_rate, weight_decay),
        WeightGroup([bias], learning_rate, 0.0),
    ]
    optimizer = AdamW(groups, fused=False)
    for epoch in range(epochs):
        if epoch > 0:  # a cosine from the first epoch's rate to zero, each from the one before
            before, now = (1 + math.cos(math.pi * n / epochs) for n in (epoch - 1, epoch))
            for group in groups:
                group.lr = now / before * group.lr
        for local, labels in batches():
            is_known = labels != -1
            # Standardise the weights instead of the many features; the logits are the same.
            folded = weight / std
            logits = F.linear(local.float(), folded, bias - folded @ mean).amax(dim=1)
            losses = F.binary_cross_entropy_with_logits(
                logits, (labels == 1).float(), weight=is_known.float(), reduction="sum"
            )
            loss = losses / is_known.sum().clamp(min=1)
            weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
            optimizer.step()

    with torch.no_grad():
        probe.weight.copy_(weight / std)
        probe.bias.copy_(bias - probe.weight @ mean)
    return probe.eval()


class LinearProbeMethod(Method[LinearProbeSettings]):
    """The probe as a method: bound to its classes, fitted in seconds (`fit_linear_probe`)."""

    Settings: ClassVar[type[MethodSettings]] = LinearProbeSettings
    scores_locations = True

    def __init__(self, settings: LinearProbeSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.probe = LinearProbe(task.dim, len(task.class_names))

    def fit(
        self, features: FeatureSource, rows: Int64[np.ndarray, " rows"], *, seed: int
    ) -> dict[str, float]:
        """Fit in place, on batches of 256 rows in one seeded order; how many passes it took."""
        device = self.task.pairs.device
        order = np.random.default_rng([seed, 2]).permutation(rows)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, len(order), 256):
                own = order[start : start + 256]
                yield features.local(own).to(device).float(), features.labels[own].to(device)

        self.probe = fit_linear_probe(
            batches,
            embed_dim=self.task.dim,
            num_classes=len(self.task.class_names),
            epochs=self.settings.epochs,
            seed=seed,
        )
        return {"passes": self.settings.epochs + 1}

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probability that each class is present."""
        logits: Tensor = self.probe(batch.local)
        return logits.sigmoid()

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Logit of each class at each location."""
        return F.linear(local.float(), self.probe.weight, self.probe.bias).mT

    def location_logits(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Logit of each class at each location."""
        return self.location_scores(local)

    def for_classes(self, task: Task) -> Method[Any]:
        """Only its own classes."""
        if task.class_names != self.task.class_names:
            raise ValueError("a linear probe knows the classes it was fitted on, and no others")
        return self.with_task(task)


def _channel_statistics(
    batches: LabelledBatches, *, embed_dim: int, num_classes: int
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Mean and standard deviation of every channel over all images and locations."""
    count = 0
    total: Tensor | float = 0.0
    total_of_squares: Tensor | float = 0.0
    for local, labels in batches():
        if local.shape[-1] != embed_dim or labels.shape != (local.shape[0], num_classes):
            raise ValueError(
                f"expected features [images, locations, {embed_dim}] and labels "
                f"[images, {num_classes}], got {list(local.shape)} and {list(labels.shape)}"
            )
        rows = local.flatten(0, 1).double()
        count += rows.shape[0]
        total = total + rows.sum(dim=0)
        total_of_squares = total_of_squares + rows.square().sum(dim=0)
    if not isinstance(total, Tensor) or not isinstance(total_of_squares, Tensor) or not count:
        raise ValueError("batches() gave no features; a probe needs at least one image")
    mean = total / count
    variance = (total_of_squares / count - mean.square()).clamp(min=0)
    # What a constant channel varies by is rounding, which must not be blown up to unit size.
    is_constant = variance <= 1e-12 * mean.square()
    std = torch.where(is_constant, 1.0, variance.sqrt())
    return mean.float(), std.float()
