"""DualCoOp and PositiveCoOp against the numbers of their authors' own modules."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.value_projection import (
    attention_pool_tokens,
    resize_positional_embedding,
    value_projection,
)
from dclip.fitting.batches import Batch
from dclip.losses import asymmetric_loss
from dclip.methods.dualcoop import DualCoOp
from dclip.methods.method import Method, Task
from dclip.methods.positivecoop import PositiveCoOp
from dclip.methods.settings import DualCoOpSettings, PositiveCoOpSettings
from dclip.metrics import average_precision, mean_average_precision

Oracle = tuple[OpenCLIPBackbone, dict[str, Tensor]]
NAMES = ("cat", "traffic_light", "wine glass", "person", "sea")
CASES = ["shared", "per_class"]
SETTINGS: Mapping[str, Any] = {"context_length": 4, "asl_reduction": "sum"}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(scope="module", params=["dualcoop", "positivecoop"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def read(read_oracle: Callable[[Path], Oracle], golden: Path, name: str) -> Oracle:
    return read_oracle(golden / f"{name}.npz")


def assert_close(found: Tensor, expected: Tensor, name: str) -> None:
    """Relative to the largest entry: what the numbers were recorded for."""
    bound = TOLERANCE[found.dtype] * float(expected.abs().max())
    deviation = float((found.detach().double() - expected).abs().max())
    assert found.shape == expected.shape, name
    assert deviation <= bound, f"{name} deviates by {deviation:.2g}, {bound:.2g} is allowed"


def as_authors(name: str, case: str, oracle: Oracle, dtype: torch.dtype) -> Method[Any]:
    """The method with the weights of the file, on the text tower of the file."""
    backbone, arrays = oracle
    backbone.model.to(dtype)
    task = Task.of_features(NAMES, torch.zeros(10, 20, dtype=dtype))
    task = Task(task.class_names, task.pairs, task.texts, backbone)
    method: Method[Any]
    start = f"weight.{case}."
    if name == "dualcoop":
        method = DualCoOp(DualCoOpSettings(contexts=case, **SETTINGS), task).to(dtype)
        theirs = {"positive": "context.positive", "negative": "context.negative"}
    else:
        settings = PositiveCoOpSettings(contexts=case, positive_offset=True, **SETTINGS)
        method = PositiveCoOp(settings, task).to(dtype)
        theirs = {
            "positive": "context.positive",
            "free_negative": "free_negative",
            "free_positive": "free_positive_offset",
        }
    weights = {ours: arrays[f"{start}{name}"] for ours, name in theirs.items()}
    assert {name: value.shape for name, value in method.named_parameters()} == {
        name: value.shape for name, value in weights.items()
    }
    with torch.no_grad():
        for ours, value in weights.items():
            method.get_parameter(ours).copy_(value)
    method.authors_names = theirs  # type: ignore[assignment]
    return method


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_are_the_authors(
    kind: str,
    case: str,
    dtype: torch.dtype,
    golden: Path,
    read_oracle: Callable[[Path], Oracle],
) -> None:
    oracle = read(read_oracle, golden, kind)
    arrays = oracle[1]
    method = as_authors(kind, case, oracle, dtype)
    local = arrays["input.location_features"].mT.to(dtype).requires_grad_()
    batch = Batch(local, arrays["input.targets_partial"])
    contexts = ("negative", "positive") if kind == "dualcoop" else ("positive",)
    texts = method.encode(*map(method.get_parameter, contexts))
    logits = method.pair_logits(batch, method.rows())
    losses = method.losses(batch)
    theirs: dict[str, str] = method.authors_names  # type: ignore[assignment]
    learned = [local, *(method.get_parameter(name) for name in theirs)]
    gradients = torch.autograd.grad(losses["loss"], learned)
    assert torch.equal(losses["loss"], losses["asl"])  # no MFI unless it is asked for
    with torch.no_grad():
        for name, value in method.derived().items():
            method.get_buffer(name).copy_(value)
        probability = method.scores(batch)
    found = {
        f"out.{case}.text_features": texts,
        f"out.{case}.logits": logits,
        f"out.{case}.probability": probability,
        f"out.{case}.asl_partial_labels": losses["asl"],
        f"grad.{case}.asl_wrt_location_features": gradients[0].mT,
    }
    for name, gradient in zip(theirs.values(), gradients[1:], strict=True):
        found[f"grad.{case}.asl_wrt_{name}"] = gradient
    expected = {name for name in arrays if name.startswith((f"out.{case}.", f"grad.{case}."))}
    assert expected - {*found} <= {"out.shared.logits_for_class_subset_4_1"}
    for name, value in found.items():
        assert_close(value, arrays[name], name)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_shared_contexts_are_asked_of_some_classes_as_the_authors_do(
    dtype: torch.dtype, golden: Path, read_oracle: Callable[[Path], Oracle]
) -> None:
    oracle = read(read_oracle, golden, "dualcoop")
    arrays = oracle[1]
    method = as_authors("dualcoop", "shared", oracle, dtype)
    method.kept.copy_(method.derived()["kept"])
    some = Task.of_features([NAMES[4], NAMES[1]], torch.zeros(4, 20, dtype=dtype))
    local = arrays["input.location_features"].mT.to(dtype)
    asked = method.for_classes(some)
    batch = Batch(local, torch.empty(0, 0))
    name = "out.shared.logits_for_class_subset_4_1"
    assert_close(asked.pair_logits(batch), arrays[name], name)
    # and encoded anew, where one name is another
    other = Task.of_features(["sea", "traffic_light", "cat food"], torch.zeros(6, 20, dtype=dtype))
    other = Task(other.class_names, other.pairs, other.texts, oracle[0])
    encoded = method.for_classes(other).pair_logits(batch)
    assert_close(encoded[..., :2], arrays[name], name)


VARIANTS = [
    (form, gammas, shift, gradient)
    for gammas in ((2, 1), (4, 1), (0, 0))
    for form in ("pair", "sigmoid_positive", "sigmoid_negative")
    for shift in (0.05, 0.0)
    for gradient in ("detached", "differentiated")
    if form == "pair" or gammas != (4, 1)
]


def variant_of(name: str) -> tuple[Callable[..., Tensor], str, str]:
    """The loss that a name of the file speaks of, and the names of its logits and labels."""
    parts = name.split(".", 1)
    form, numbers = parts[0], parts[1]
    gamma_neg, gamma_pos, shift = (
        float(numbers.split(key)[1].split("_")[0]) for key in ("gamma_neg", "gamma_pos", "shift")
    )
    loss = partial(
        asymmetric_loss,
        gamma_neg=gamma_neg,
        gamma_pos=gamma_pos,
        clip=shift,
        form="optimised" if form == "optimized_sigmoid" else form,
        weight_gradient="detached" if "detached" in numbers else "differentiated",
    )
    inputs = ("pair_logits", "targets_partial") if form == "pair" else ("single_logits", "targets")
    return (loss, *inputs)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_variant_of_asl_is_the_authors(dtype: torch.dtype, golden: Path) -> None:
    with np.load(golden / "dualcoop.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    names = [name.removeprefix("asl.out.") for name in arrays if name.startswith("asl.out.")]
    names.remove("extreme")
    assert len(names) == len(VARIANTS) + 1 == 29
    for name in names:
        loss, logits, labels = variant_of(name)
        given = arrays[f"asl.input.{logits}"].to(dtype).requires_grad_()
        pairs = given
        if logits == "single_logits":  # the other polarity has no part in it
            other = torch.full_like(given, 3.0)
            order = [given, other] if name.startswith("sigmoid_negative") else [other, given]
            pairs = torch.stack(order, dim=1)
        value = loss(pairs, arrays[f"asl.input.{labels}"])
        (gradient,) = torch.autograd.grad(value, given)
        assert_close(value, arrays[f"asl.out.{name}"], name)
        assert_close(gradient, arrays[f"asl.grad.{name}"], name)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_floor_of_asl_is_the_authors(dtype: torch.dtype, golden: Path) -> None:
    with np.load(golden / "dualcoop.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    logits = arrays["asl.input.extreme_pair_logits"].to(dtype).requires_grad_()
    value = asymmetric_loss(logits, arrays["asl.input.extreme_targets"])
    (gradient,) = torch.autograd.grad(value, logits)
    assert_close(value, arrays["asl.out.extreme"], "value")
    assert_close(gradient, arrays["asl.grad.extreme"], "gradient")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("grid", [(4, 5), (3, 3)])
def test_the_value_path_is_the_authors(
    grid: tuple[int, int], dtype: torch.dtype, golden: Path
) -> None:
    with np.load(golden / "dualcoop.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    start = "value_path.weight."
    maps = {}
    for name in ("v_proj", "c_proj"):
        weight = arrays[f"{start}{name}.weight"].to(dtype)
        maps[name] = nn.Linear(*reversed(weight.shape), dtype=dtype)
        with torch.no_grad():
            maps[name].weight.copy_(weight)
            maps[name].bias.copy_(arrays[f"{start}{name}.bias"])
    positions = resize_positional_embedding(
        arrays[f"{start}positional_embedding"].to(dtype), native_grid=(3, 3), grid=grid
    )
    at = f"{grid[0]}x{grid[1]}"
    tokens = attention_pool_tokens(arrays[f"value_path.input.layer4_{at}"].to(dtype), positions)
    found = value_projection(tokens, value=maps["v_proj"], output=maps["c_proj"])
    name = f"value_path.out.tokens_{at}"
    assert_close(found.mT, arrays[name], name)


def test_average_precision_is_the_authors(golden: Path) -> None:
    with np.load(golden / "dualcoop.npz") as stored:
        arrays = {n: torch.from_numpy(stored[n]) for n in stored.files if n.startswith("ap.")}
    scores, labels = arrays["ap.input.scores"], arrays["ap.input.targets"]
    present = (labels == 1).sum(0).double()
    # they divide by the number of positives and 1e-8, which takes up to 1e-8 of the value away
    theirs = average_precision(scores, labels) * present / (present + 1e-8)
    assert_close(theirs, arrays["ap.out.per_class"], "per class")
    assert_close(100 * theirs.mean(), arrays["ap.out.map_percent"], "mAP")
    own = 100 * mean_average_precision(scores, labels)
    assert own == pytest.approx(float(arrays["ap.out.map_percent"]), rel=1e-8)
