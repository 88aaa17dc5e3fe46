"""Steps of our optimizers are those of PyTorch's classes, to the bit."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dclip.fitting.optimizer import SGD, AdamW, Optimizer, WeightGroup

RATES = [1e-2, 3e-3, 1e-3, 5e-4]


def weights(device: torch.device) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(5, 4), (7,), (3, 3)]
    drawn = [torch.randn(shape, generator=random) for shape in shapes]
    return [value.to(device).requires_grad_() for value in drawn]


def steps(weights: Sequence[Tensor], take: Callable[[float], None]) -> None:
    """Some steps; the last weight has no gradient in the first and gets its first in the second."""
    for number, lr in enumerate(RATES):
        random = torch.Generator().manual_seed(number)
        for position, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=random).to(weight.device)
            weight.grad = None if position == 1 or (position, number) == (2, 0) else gradient
        take(lr)


@pytest.mark.parametrize("name", ["adamw", "adamw one by one", "sgd", "sgd without momentum"])
def test_steps_are_those_of_torch_to_the_bit(name: str, device: torch.device) -> None:
    ours, theirs = weights(device), weights(device)
    momentum = 0.9 if name == "sgd" else 0.0
    groups = [WeightGroup(ours[:2], 0.0, 0.05), WeightGroup(ours[2:], 0.0, 0.0)]
    parameters = [
        {"params": theirs[:2], "weight_decay": 0.05}, {"params": theirs[2:], "weight_decay": 0.0}
    ]  # fmt: skip
    if name.startswith("adamw"):
        own: Optimizer = AdamW(groups, fused=name == "adamw")
        other: torch.optim.Optimizer = torch.optim.AdamW(
            parameters, fused=True if name == "adamw" else None
        )
    else:
        own = SGD(groups, momentum=momentum)
        other = torch.optim.SGD(parameters, 0.1, momentum=momentum, fused=True)

    def take_ours(lr: float) -> None:
        groups[0].lr = groups[1].lr = lr
        own.step()

    def take_theirs(lr: float) -> None:
        for group in other.param_groups:
            group["lr"] = lr
        other.step()

    steps(ours, take_ours)
    steps(theirs, take_theirs)
    for number, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(mine, its)
        assert (number == 1) == torch.equal(mine, weights(device)[number])
    kept = {
        (number, slot): value
        for number, slots in other.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }
    assert {(n, slot) for n, slots in own.state.items() for slot in slots} == {*kept}
    for (number, slot), value in kept.items():
        assert torch.equal(own.state[number][slot], value)

    own.zero_grad()
    assert all(weight.grad is None for weight in ours)


def test_a_state_that_is_taken_over_goes_on_as_if_there_had_been_no_break(
    device: torch.device,
) -> None:
    through = weights(device)
    whole = AdamW([WeightGroup(through, 1e-2, 0.05)], fused=True)
    steps(through, lambda _: whole.step())
    kept = {number: dict(slots) for number, slots in whole.state.items()}
    again = [weight.detach().clone().requires_grad_() for weight in through]
    other = AdamW([WeightGroup(again, 1e-2, 0.05)], fused=True)
    other.load(kept)
    before = whole.state[0]["exp_avg"].clone()
    steps(again, lambda _: other.step())
    assert torch.equal(whole.state[0]["exp_avg"], before)  # the state is a copy
    steps(through, lambda _: whole.step())
    assert all(torch.equal(*pair) for pair in zip(through, again, strict=True))


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_state_lies_in_memory_as_its_weight_does(kind: type[Any]) -> None:
    """Convolutions keep their channels last, files do not; a fused step goes through memory."""
    more = {"momentum": 0.9} if kind is SGD else {"fused": True}

    def one() -> tuple[Tensor, Any]:
        weight = torch.arange(48.0).reshape(4, 3, 2, 2).to(memory_format=torch.channels_last)
        weight.requires_grad_()
        return weight, kind([WeightGroup([weight], 0.1, 0.0)], **more)

    def step(weight: Tensor, own: Any) -> None:
        random = torch.Generator().manual_seed(len(own.state))
        gradient = torch.randn(4, 3, 2, 2, generator=random)
        weight.grad = gradient.to(memory_format=torch.channels_last)
        own.step()

    weight, own = one()
    step(weight, own)
    kept = {
        number: {name: value.contiguous().clone() for name, value in slots.items()}
        for number, slots in own.state.items()
    }
    other, again = one()
    with torch.no_grad():
        other.copy_(weight)
    again.load(kept)
    step(weight, own)
    step(other, again)
    assert torch.equal(weight, other)


def test_a_training_and_a_probe_load_no_compiler() -> None:
    """Which takes as long as PyTorch."""
    code = (
        "import sys, torch, numpy as np\n"
        "from dclip.fitting.fit import fit\n"
        "from dclip.training import Recipe, Training\n"
        "from dclip.methods.linear_probe import fit_linear_probe\n"
        "class Source:\n"
        "    views, grid = 1, (1, 3)\n"
        "    labels = torch.randint(0, 2, (8, 2), dtype=torch.int8)\n"
        "    def local(self, rows, views=None): return torch.randn(len(rows), 3, 16).half()\n"
        "for preset in ('robust', 'anchored'):\n"
        "    recipes = [Recipe(preset=preset, epochs=1, mfi_weight=w) for w in (0.1, 0.5)]\n"
        "    training = Training(recipes, torch.randn(4, 16), seeds=[0, 1])\n"
        "    fit(training, Source(), np.arange(8), seed=0, val_rows=np.arange(8))\n"
        "batch = torch.randn(8, 3, 16), Source.labels\n"
        "fit_linear_probe(lambda: [batch], embed_dim=16, num_classes=2, epochs=2)\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
