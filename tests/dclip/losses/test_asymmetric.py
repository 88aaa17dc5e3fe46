"""ASL against a plain loop over the equation, its limits, and its extremes."""

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dclip.losses.asymmetric import asymmetric_loss


def loss_by_loops(
    pair_logits: Tensor, labels: Tensor, gamma_neg: float, gamma_pos: float, clip: float
) -> float:
    total = 0.0
    for (absent, present), row in zip(pair_logits.tolist(), labels.tolist(), strict=True):
        for s_neg, s_pos, y in zip(absent, present, row, strict=True):
            highest = max(s_neg, s_pos)
            norm = math.exp(s_neg - highest) + math.exp(s_pos - highest)
            p_pos = math.exp(s_pos - highest) / norm
            p_neg = min(math.exp(s_neg - highest) / norm + clip, 1.0)
            if y == 1:
                total -= (1 - p_pos) ** gamma_pos * math.log(max(p_pos, 1e-6))
            elif y == 0:
                total -= (1 - p_neg) ** gamma_neg * math.log(max(p_neg, 1e-6))
    return total


def random_labels(*shape: int) -> Tensor:
    return torch.randint(-1, 2, shape)


@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gamma_pos", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.5])
def test_is_the_equation(
    gamma_neg: float, gamma_pos: float, clip: float, device: torch.device
) -> None:
    logits = 3 * torch.randn(7, 2, 5, dtype=torch.float64)
    labels = random_labels(7, 5)
    settings = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    loss = asymmetric_loss(logits.to(device), labels.to(device), **settings)
    assert loss.item() == pytest.approx(loss_by_loops(logits, labels, **settings), rel=1e-12)


def test_a_hand_worked_pair() -> None:
    # s+ - s- = log 3, so p+ = 3/4 and p- = 1/4; the shifted p- is 0.3.
    # Present: (1/4)^1 * -log(3/4).  Absent: (1 - 0.3)^2 * -log(0.3).
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), math.log(3)]]], dtype=torch.float64)
    loss = asymmetric_loss(logits, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(-0.25 * math.log(0.75) - 0.49 * math.log(0.3), rel=1e-12)


def test_is_binary_cross_entropy_without_focus_and_clip() -> None:
    logits = (4 * torch.randn(6, 2, 5, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 2, (6, 5)).double()
    plain = {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0}
    for reduction in ("sum", "mean"):
        loss = asymmetric_loss(logits, labels, reduction=reduction, **plain)
        expected = F.binary_cross_entropy_with_logits(
            logits[:, 1] - logits[:, 0], labels, reduction=reduction
        )
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
        )


def test_no_gradient_flows_through_the_focusing_weight() -> None:
    # One present class: dL/ds+ = -w dlog(p+)/ds+ = -(1 - p+)^gamma * (1 - p+).
    logits = torch.zeros(1, 2, 1, dtype=torch.float64, requires_grad=True)
    asymmetric_loss(logits, torch.ones(1, 1), gamma_pos=3.0).backward()
    assert logits.grad[0, :, 0].tolist() == pytest.approx([0.5**4, -(0.5**4)])


def test_the_margin_forgives_confident_absence() -> None:
    # p- = sigmoid(4) = 0.982 lies within 0.05 of 1.
    logits = torch.tensor([[[4.0], [0.0]]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_unknown_labels_cost_nothing_and_are_not_averaged_over() -> None:
    logits = torch.randn(4, 2, 3, requires_grad=True)
    labels = torch.tensor([[1, 0, -1], [-1, -1, -1], [0, 1, -1], [-1, 0, -1]])
    known_rows, known_columns = torch.nonzero(labels != -1, as_tuple=True)
    known = logits[known_rows, :, known_columns].unsqueeze(-1)
    alone = asymmetric_loss(known, labels[labels != -1].unsqueeze(-1))

    loss = asymmetric_loss(logits, labels)
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(asymmetric_loss(logits, labels, reduction="mean"), alone / 5)
    loss.backward()
    is_unknown = (labels == -1)[:, None].expand_as(logits)
    assert torch.equal(logits.grad[is_unknown], torch.zeros(int(is_unknown.sum())))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("images", [0, 3])
def test_no_known_label_gives_zero_with_a_zero_gradient(reduction: str, images: int) -> None:
    logits = torch.randn(images, 2, 4, requires_grad=True)
    loss = asymmetric_loss(logits, torch.full((images, 4), -1), reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e30])
@pytest.mark.parametrize("clip", [0.0, 1e-12, 0.05])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("label", [0, 1])
def test_loss_and_gradient_are_finite_at_extreme_logits(
    scale: float, clip: float, gamma: float, label: int
) -> None:
    logits = torch.tensor([[[-scale, scale, 0.0], [scale, -scale, 0.0]]], requires_grad=True)
    labels = torch.full((1, 3), label)
    loss = asymmetric_loss(logits, labels, gamma_neg=gamma, gamma_pos=gamma, clip=clip)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_the_worst_error_costs_the_logarithm_of_the_floor() -> None:
    logits = torch.tensor([[[1e3, -1e3], [-1e3, 1e3]]])
    labels = torch.tensor([[1, 0]])
    loss = asymmetric_loss(logits, labels, clip=0.0)
    assert loss.item() == pytest.approx(-2 * math.log(1e-6), rel=1e-6)


def test_confident_absence_keeps_its_digits_without_clip() -> None:
    # In float32, p- = 1 - 2e-9 rounds to 1; its cost must not.
    logits = torch.tensor([[[20.0], [0.0]]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.zeros(1, 1), gamma_neg=0.0, clip=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(-20), rel=1e-6)
    assert logits.grad[0, 1, 0].item() == pytest.approx(math.exp(-20), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(4, 2, 3)).to(dtype)
    labels = random_labels(4, 3)
    loss = asymmetric_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, asymmetric_loss(logits.float(), labels))
    # 60000 - (-60000) does not fit into float16.
    extreme = torch.tensor([[[-60000.0], [60000.0]]]).to(dtype)
    assert asymmetric_loss(extreme, torch.ones(1, 1)).item() == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.float16])
def test_labels_may_have_any_dtype(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 2, 3)
    labels = torch.randint(0, 2, (4, 3))
    torch.testing.assert_close(
        asymmetric_loss(logits, labels.to(dtype)), asymmetric_loss(logits, labels.float())
    )


@given(seed=st.integers(0, 2**32), shift=st.floats(-50, 50))
def test_only_the_difference_of_a_pair_matters(seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 2, (3, 4), generator=generator)
    torch.testing.assert_close(
        asymmetric_loss(logits + shift, labels), asymmetric_loss(logits, labels)
    )


@given(seed=st.integers(0, 2**32))
def test_the_order_of_images_and_classes_does_not_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 2, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 2, (5, 4), generator=generator)
    rows = torch.randperm(5, generator=generator)
    columns = torch.randperm(4, generator=generator)
    shuffled = asymmetric_loss(logits[rows][..., columns], labels[rows][:, columns])
    torch.testing.assert_close(shuffled, asymmetric_loss(logits, labels))


@pytest.mark.parametrize("label", [2.0, 0.5, -2.0, float("nan")])
def test_a_label_that_is_no_label_is_refused(label: float) -> None:
    labels = torch.tensor([[0.0, label]])
    with pytest.raises(ValueError, match=f"got {label}"):
        asymmetric_loss(torch.zeros(1, 2, 2), labels)


@pytest.mark.parametrize(
    "setting",
    [
        {"clip": 1.0},
        {"clip": -0.1},
        {"clip": float("nan")},
        {"gamma_neg": -1.0},
        {"gamma_pos": -0.5},
        {"gamma_pos": float("nan")},
    ],
)
def test_a_setting_out_of_range_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        asymmetric_loss(torch.zeros(1, 2, 1), torch.zeros(1, 1), **setting)


def test_without_type_checks_shapes_and_words_are_still_checked() -> None:
    # These tests run with shapes checked at the door; a user's program has only the function.
    unchecked = inspect.unwrap(asymmetric_loss)
    for logits, labels in (
        (torch.zeros(3, 2, 4), torch.zeros(1, 4)),
        (torch.zeros(3, 2, 4), torch.zeros(4)),
        (torch.zeros(3, 3, 4), torch.zeros(3, 4)),
        (torch.zeros(3, 4), torch.zeros(3, 4)),
    ):
        with pytest.raises(ValueError, match="expected pair_logits"):
            unchecked(logits, labels)
    with pytest.raises(ValueError, match="reduction"):
        unchecked(torch.zeros(1, 2, 1), torch.zeros(1, 1), reduction="none")


@pytest.mark.parametrize("form", ["sigmoid_positive", "sigmoid_negative", "optimised"])
def test_one_polarity_is_a_pair_whose_other_logit_is_zero(form: str) -> None:
    # the softmax over (0, s) is the sigmoid of s
    pairs = 3 * torch.randn(4, 2, 5, dtype=torch.float64)
    labels = torch.randint(-1, 2, (4, 5))
    alone = pairs.clone()
    alone[:, 1 if form == "sigmoid_negative" else 0] = 0
    found = asymmetric_loss(pairs, labels, form=form)
    torch.testing.assert_close(found, asymmetric_loss(alone, labels))


def test_a_differentiated_weight_has_the_gradient_of_finite_differences() -> None:
    pairs = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 2, (3, 4))

    def loss(pairs: Tensor) -> Tensor:
        return asymmetric_loss(pairs, labels, weight_gradient="differentiated")

    assert torch.autograd.gradcheck(loss, pairs)
    detached = asymmetric_loss(pairs, labels)
    torch.testing.assert_close(loss(pairs), detached)
    (by_detached,) = torch.autograd.grad(detached, pairs)
    (by_differentiated,) = torch.autograd.grad(loss(pairs), pairs)
    assert not torch.allclose(by_detached, by_differentiated)


def test_the_optimised_form_has_a_lower_floor() -> None:
    # a class that is there and is given probability 0: -log of the floor
    pairs = torch.tensor([[[0.0], [-100.0]]])
    labels = torch.tensor([[1]])
    for form, floor in (("sigmoid_positive", 1e-6), ("optimised", 1e-8)):
        found = asymmetric_loss(pairs, labels, form=form)
        torch.testing.assert_close(found, -torch.tensor(floor).log())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gamma_pos": 0.5, "weight_gradient": "differentiated"}, r"gamma_pos=0\.5 has no finite"),
        ({"gamma_neg": 0.5, "form": "optimised"}, r"gamma_neg=0\.5 has no finite"),
    ],
)
def test_exponents_without_a_finite_gradient_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        asymmetric_loss(torch.zeros(1, 2, 1), torch.zeros(1, 1), **changes)
