"""MaPLe and DAPT against the numbers of their authors' own modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.fitting.batches import Batch
from dclip.methods.method import Task, initial
from dclip.methods.pixels.dapt import DAPT
from dclip.methods.pixels.maple import MaPLe
from dclip.methods.pixels.settings import DAPTSettings, MaPLeSettings

Oracle = tuple[OpenCLIPBackbone, dict[str, Tensor]]
ReadOracle = Callable[[Path], Oracle]
NAMES = {
    "maple": ("cat", "traffic_light", "wine glass", "sea"),
    "dapt": ("cat", "traffic_light", "wine glass", "sea horse"),
}
WEIGHTS = {
    "context": "shallow_text",
    "deep.0": "deep_text.layer1",
    "deep.1": "deep_text.layer2",
    "couplings.0.weight": "shallow_to_vision.weight",
    "couplings.0.bias": "shallow_to_vision.bias",
    "couplings.1.weight": "deep_to_vision.layer1.weight",
    "couplings.1.bias": "deep_to_vision.layer1.bias",
    "couplings.2.weight": "deep_to_vision.layer2.weight",
    "couplings.2.bias": "deep_to_vision.layer2.bias",
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
CODE = DAPTSettings.presets["author"].own


def as_authors(name: str, oracle: Oracle, dtype: torch.dtype, **settings: Any) -> Any:
    """The method with the weights of the file, on the CLIP of the file, fed its images."""
    backbone, arrays = oracle
    backbone.model.to(dtype)
    task = Task.of(backbone, [[one] for one in NAMES[name]])
    images = arrays["input.images"].to(dtype)
    own = {"depth": 3, **settings}
    kind: Any = MaPLe if name == "maple" else DAPT
    chosen = MaPLeSettings(**own) if name == "maple" else DAPTSettings(**own)
    method = initial(kind, chosen, task, seed=0).to(dtype)
    assert {*dict(method.named_parameters())} == {*WEIGHTS}
    with torch.no_grad():
        for ours, theirs in WEIGHTS.items():
            method.get_parameter(ours).copy_(arrays[f"weight.prompt.{theirs}"])
    method.normalised = lambda batch: images[: len(batch.labels)]  # which are no whole numbers
    return method


def batch_of(arrays: dict[str, Tensor], epoch: int = 0) -> Batch:
    labels = torch.nn.functional.one_hot(arrays["input.labels"], 4)
    pixels = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    masks = arrays["input.masks"][:, 0] > 0 if "input.masks" in arrays else None
    return Batch(torch.empty(3, 0, 0), labels, epoch=epoch, pixels=pixels, masks=masks)


def assert_close(found: Tensor, expected: Tensor, name: str, bound: float | None = None) -> None:
    """Relative to the largest entry: what the numbers were recorded for."""
    bound = (TOLERANCE[found.dtype] if bound is None else bound) * float(expected.abs().max())
    deviation = float((found.detach().double() - expected).abs().max())
    assert found.shape == expected.shape, name
    assert deviation <= bound, f"{name} deviates by {deviation:.2g}, {bound:.2g} is allowed"


def assert_gradients(method: Any, loss: Tensor, arrays: dict[str, Tensor], start: str) -> None:
    gradients = torch.autograd.grad(loss, [method.get_parameter(name) for name in WEIGHTS])
    for theirs, gradient in zip(WEIGHTS.values(), gradients, strict=True):
        assert_close(gradient, arrays[f"{start}{theirs}"], f"{start}{theirs}")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_maples_features_logits_loss_and_gradients_are_the_authors(
    dtype: torch.dtype, golden: Path, read_oracle: ReadOracle
) -> None:
    oracle = read_oracle(golden / "maple.npz")
    arrays, method = oracle[1], as_authors("maple", oracle, dtype)
    batch = batch_of(arrays)
    texts, images = method.texts(), method.images(method.normalised(batch)).embedding
    visual = [
        coupling(text)
        for coupling, text in zip(method.couplings, [method.context, *method.deep], strict=True)
    ]
    losses = method.losses(batch)
    found = {
        "out.text_features": texts,
        "out.image_features": images,
        "out.shallow_vision_prompts": visual[0],
        "out.deep_vision_prompts": torch.stack(visual[1:]),
        "out.logits": method.logits(images, texts),
        "out.loss": losses["loss"],
    }
    rest = {n for n in arrays if n.startswith("out.")} - {*found}
    assert rest == {"out.prompt_embeddings"}
    for name, value in found.items():
        assert_close(value, arrays[name], name)
    assert_gradients(method, losses["loss"], arrays, "grad.loss_wrt_prompt.")
    with torch.no_grad():
        method.kept.copy_(method.derived()["kept"])
        assert_close(method.scores(batch), arrays["out.logits"].softmax(-1), "scores")


def test_what_enters_the_text_tower_is_the_authors(golden: Path, read_oracle: ReadOracle) -> None:
    oracle = read_oracle(golden / "maple.npz")
    method, entered = as_authors("maple", oracle, torch.float64), []
    backbone = oracle[0]
    encode = backbone.encode_embedded
    backbone.encode_embedded = lambda *given: entered.append(given[0]) or encode(*given)  # type: ignore[method-assign,func-returns-value]
    method.texts()
    assert_close(entered[0], oracle[1]["out.prompt_embeddings"], "embeddings", 1e-9)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("epoch", [6, 7])
def test_both_phases_of_dapt_are_the_authors(
    epoch: int, dtype: torch.dtype, golden: Path, read_oracle: ReadOracle
) -> None:
    oracle = read_oracle(golden / "dapt.npz")
    arrays, method = oracle[1], as_authors("dapt", oracle, dtype, **CODE)
    batch = batch_of(arrays, epoch)
    losses = method.losses(batch)
    assert [*losses] == ["loss", "main", "triplet", "foreground", "background", "unmasked"]
    found = {
        "out.loss_main": losses["main"],
        "out.loss_f": losses["foreground"],
        "out.loss_b": losses["background"],
        "out.loss_v": losses["triplet"],
        f"out.epoch{epoch}.loss_total": losses["loss"],
    }
    assert losses["unmasked"] == 0
    for name, value in found.items():
        assert_close(value, arrays[name], name)
    assert_gradients(method, losses["loss"], arrays, f"grad.epoch{epoch}.total_wrt_prompt.")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dapts_features_and_logits_are_the_authors(
    dtype: torch.dtype, golden: Path, read_oracle: ReadOracle
) -> None:
    oracle = read_oracle(golden / "dapt.npz")
    arrays, method = oracle[1], as_authors("dapt", oracle, dtype, **CODE)
    images, masks = method.normalised(batch_of(arrays)), arrays["input.masks"].to(dtype)
    with torch.no_grad():
        texts = method.texts()
        whole, foreground, background = (
            method.images(each).embedding for each in (images, images * masks, images * (1 - masks))
        )
        for name, value in method.derived().items():
            method.get_buffer(name).copy_(value)
        behind = method.logits(background, texts[11:])
        found = {
            "out.text_features_all": texts,
            "out.image_features": whole,
            "out.foreground_features": foreground,
            "out.background_features": background,
            "out.logits": method.logits(whole, texts[:11]),
            "out.eval_logits": method.logits(
                whole, torch.cat([method.kept, method.background[: method.split]])
            ),
            "out.foreground_logits": method.logits(foreground, texts[:11]),
            "out.background_logits": behind,
            "out.gradcam.logits_all": method.logits(whole, texts),
        }
    for name, value in found.items():
        assert_close(value, arrays[name], name)
    assert torch.equal(behind.argmax(1), arrays["out.background_pseudo_label"])
    # who is taken for a word of the background is taken for no class
    scores, theirs = method.chances(whole), arrays["out.eval_logits"].softmax(-1)
    for own, their in zip(scores, theirs, strict=True):
        expected = their[:4] if int(their.argmax()) < 4 else torch.zeros(4)
        torch.testing.assert_close(own.double(), expected.double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_grad_cam_is_the_authors(dtype: torch.dtype, golden: Path, read_oracle: ReadOracle) -> None:
    oracle = read_oracle(golden / "dapt.npz")
    settings = {**CODE, "mask_source": "gradcam"}
    arrays, method = oracle[1], as_authors("dapt", oracle, dtype, **settings)
    images = method.normalised(batch_of(arrays))
    whole, saliency = method.saliency(images, method.texts(), arrays["input.labels"])
    assert_close(whole, arrays["out.image_features"], "features")
    bound = 1e-6 if dtype == torch.float64 else 1e-4  # stored in float32
    assert_close(saliency, arrays["out.gradcam.saliency"][:, 0], "saliency", bound)
    if dtype == torch.float64:  # a value lies 4e-5 beside the threshold
        mask = saliency >= method.settings.gradcam_threshold
        assert torch.equal(mask, arrays["out.gradcam.mask"][:, 0] > 0)
        # and the losses are those of these masks
        used = method.losses(batch_of(arrays, 7))
        given = as_authors("dapt", oracle, dtype, **CODE).losses(
            batch_of(arrays, 7)._replace(masks=mask)
        )
        for name, value in used.items():
            torch.testing.assert_close(value, given[name], rtol=1e-9, atol=1e-12, msg=name)
    assert float(saliency[2].max()) < 0.9 <= float(saliency.max())  # a share of the batch's
