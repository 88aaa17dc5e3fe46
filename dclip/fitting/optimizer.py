"""SGD and AdamW by PyTorch's own functions, to the bit as its classes step.

The classes load PyTorch's compiler with the first step, which takes a process about as long as all
of PyTorch does.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd


@dataclass
class WeightGroup:
    """Weights that step alike.

    Attributes:
        weights: Leaves with gradients; one without a gradient takes no step.
        lr: Learning rate of the next step.
        weight_decay: Of SGD, added to the gradient; of AdamW, decoupled.
        lr_factor: Multiple of the common learning rate, for whoever sets ``lr``.
        warms_up: Whether warm-up steps hold for them, for the same.
    """

    weights: Sequence[Tensor]
    lr: float
    weight_decay: float
    lr_factor: float = 1.0
    warms_up: bool = True


class Optimizer(ABC):
    """Groups of weights, and what their steps remember.

    Args:
        groups: Of weights.

    Attributes:
        groups: As given.
        state: What is remembered of each weight, by its number over all groups; nothing of those
            that took no step.
    """

    def __init__(self, groups: Sequence[WeightGroup]) -> None:
        self.groups = list(groups)
        self.state: dict[int, dict[str, Tensor]] = {}

    @property
    def param_groups(self) -> list[dict[str, Sequence[Tensor]]]:
        """The weights as PyTorch's gradient scaler asks for them."""
        return [{"params": group.weights} for group in self.groups]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.groups:
            for weight in group.weights:
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step along the gradients there are."""
        first = 0
        for group in self.groups:
            own = {n: w for n, w in enumerate(group.weights, first) if w.grad is not None}
            first += len(group.weights)
            if own:
                gradients = [weight.grad for weight in own.values() if weight.grad is not None]
                self._step(group, own, gradients)

    @abstractmethod
    def _step(
        self, group: WeightGroup, weights: Mapping[int, Tensor], gradients: list[Tensor]
    ) -> None:
        """Step with some weights of a group, given by their numbers."""

    def load(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take over a state of equal weights, on whatever device it is."""
        weights = dict(enumerate(weight for group in self.groups for weight in group.weights))

        def alike(value: Tensor, weight: Tensor) -> Tensor:
            """A copy that lies in memory as the weight does: fused steps go through both as one."""
            if value.shape != weight.shape:
                return value.to(weight.device).clone()
            return torch.empty_like(weight, dtype=value.dtype).copy_(value)

        self.state = {
            number: {name: alike(value, weights[number].detach()) for name, value in own.items()}
            for number, own in state.items()
        }


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, fused.

    Args:
        groups: Of weights.
        momentum: In [0, 1).
    """

    def __init__(self, groups: Sequence[WeightGroup], *, momentum: float) -> None:
        super().__init__(groups)
        self._momentum = momentum

    def _step(
        self, group: WeightGroup, weights: Mapping[int, Tensor], gradients: list[Tensor]
    ) -> None:
        kept = [self.state.get(number, {}).get("momentum_buffer") for number in weights]
        sgd(
            [*weights.values()], gradients, kept,
            lr=group.lr, weight_decay=group.weight_decay, momentum=self._momentum,
            dampening=0.0, nesterov=False, maximize=False, fused=True,
        )  # fmt: skip
        # the first step has filled in what was missing
        self.state |= {
            number: {"momentum_buffer": value}
            for number, value in zip(weights, kept, strict=True)
            if value is not None
        }


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Args:
        groups: Of weights.
        fused: By one kernel for all weights, which may differ in the last bits.

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101.
    """

    def __init__(self, groups: Sequence[WeightGroup], *, fused: bool) -> None:
        super().__init__(groups)
        self._fused = fused

    def _step(
        self, group: WeightGroup, weights: Mapping[int, Tensor], gradients: list[Tensor]
    ) -> None:
        for number, weight in weights.items():
            if number not in self.state:
                self.state[number] = {
                    "step": torch.zeros((), device=weight.device if self._fused else "cpu"),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        own = [self.state[number] for number in weights]
        adamw(
            [*weights.values()], gradients,
            [each["exp_avg"] for each in own], [each["exp_avg_sq"] for each in own], [],
            [each["step"] for each in own],
            lr=group.lr, weight_decay=group.weight_decay, beta1=0.9, beta2=0.999, eps=1e-8,
            amsgrad=False, maximize=False, fused=self._fused or None,
        )  # fmt: skip
