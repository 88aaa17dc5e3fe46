"""Fingerprints: of what a model computes, not of how its library calls its classes."""

from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import Attention
from torch import nn

from dclip.backbones import load_backbone
from dclip.backbones.blocks import plain_block
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.record import activation_name

from .small_architectures import small_backbone

TINY = "749aca3866c5fbb8e12b9ebbf3d96e647c444117c7bf89b8f6a01e2996a691da"
TINY_OF_0_1 = "a1520afb8adf83c6cb322fc5acf1b88c7a5af41bfb61116cd1ba0125346b7a0e"

GOLDEN = {
    "RN50": "8c153b3efb3f9690318f86fff1ba4baf332baa9652cf12f492c97d829855a700",
    "ViT-B-32": "a7f0838c27862a2340cf735a2d7c3cf162c6dc8efc1aecd3eac319549b368c2a",
    "ViT-B-16-SigLIP2": "d9ede18165916ad49998b4f4f60793d28fc8cbaa0793b7081694c5a5b81c4adf",
    "PE-Core-B-16": "8ab71495109a538bde54fcbd2dc73d7623ad114bff53c2152fd7e1c0f417242d",
    "convnext_tiny": "f2815d898166d6060968575d60340558990b39457789b2fcb9963ea18a1cd7dd",
    "EVA02-B-16": "717b56d26138c80f7d5b1992fe1aedcbb4809856b82d044a059aff5d5f091e0c",
}
"""Of small models with the weights of `_golden`, under open_clip 3.3 and timm 1.0.31."""


def _renamed(module: nn.Module) -> nn.Module:
    """The module, every class of it replaced by one of another name that does the same."""
    for layer in module.modules():
        own = type(layer)
        layer.__class__ = type(f"Other{own.__name__}", (own,), {})
    return module


def _golden(architecture: str) -> OpenCLIPBackbone:
    """A small model whose weights do not hang on any generator of random numbers."""
    backbone = small_backbone(architecture, dtype=torch.float32)
    with torch.no_grad():
        for number, (_, weight) in enumerate(sorted(backbone.model.state_dict().items())):
            if weight.is_floating_point():
                ramp = torch.arange(weight.numel(), dtype=torch.float32) % 97
                weight.copy_(((ramp + number) / 97).reshape(weight.shape))
    return backbone


@pytest.mark.parametrize("architecture", GOLDEN)
def test_fingerprints_stay_what_they_were_and_do_not_hang_on_names(architecture: str) -> None:
    backbone = _golden(architecture)

    assert backbone.fingerprint() == GOLDEN[architecture]

    _renamed(backbone.model)
    backbone._fingerprint = None
    assert backbone.fingerprint() == GOLDEN[architecture]
    assert backbone.former_fingerprint() != _golden(architecture).former_fingerprint()


def test_the_small_clip_keeps_its_fingerprint_and_knows_its_former_one() -> None:
    backbone: Any = load_backbone("tiny")

    assert backbone.fingerprint() == TINY
    assert backbone.former_fingerprint() == TINY_OF_0_1


def test_what_weights_do_not_tell_changes_the_fingerprint() -> None:
    prints = {}
    for heads, quick in ((2, False), (4, False), (2, True)):
        backbone = _golden("ViT-B-32")
        for block in backbone.model.visual.transformer.resblocks:
            block.attn.num_heads = heads
            if quick:
                block.mlp.gelu = open_clip.transformer.QuickGELU()
        backbone._fingerprint = None
        prints[heads, quick] = backbone.fingerprint()

    assert len(set(prints.values())) == 3


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu tanh"),
        (open_clip.transformer.QuickGELU(), "quick gelu"),
        (nn.Identity(), "identity"),
        (nn.Dropout(0.5).eval(), "identity"),
        (nn.Softmax(dim=-1), ""),
        (nn.Linear(33, 33), ""),
        (nn.Flatten(), ""),
    ],
)
def test_an_activation_is_known_by_its_values(layer: nn.Module, name: str) -> None:
    assert activation_name(layer) == name


@pytest.fixture
def other_attention() -> OpenCLIPBackbone:
    """A small ViT whose attention is open_clip 4's class, not torch's, with the same weights."""
    backbone = small_backbone("ViT-B-32")
    towers = [backbone.model.visual.transformer, backbone.model.transformer]
    for block in [block for tower in towers for block in tower.resblocks]:
        own = block.attn
        other = Attention(own.embed_dim, own.num_heads).double().eval().requires_grad_(False)
        other.load_state_dict(own.state_dict())
        block.attn = other
        block.attention = lambda q_x, attn_mask=None, own=other, **_: own(q_x, attn_mask=attn_mask)
    return OpenCLIPBackbone(backbone.model, backbone.tokenizer, name="ViT-B-32")


def test_both_classes_of_attention_give_the_same_of_everything(
    other_attention: OpenCLIPBackbone,
) -> None:
    plain = small_backbone("ViT-B-32")
    images = torch.randn(2, 3, *plain.tower.native_size, dtype=torch.float64)
    prompts = torch.randn(2, 32, dtype=torch.float64)
    mask = torch.randn(2, 12, 12, dtype=torch.float64)
    tight = {"rtol": 0, "atol": 1e-12}

    assert other_attention.kinds == plain.kinds
    assert other_attention.offers == plain.offers
    assert other_attention.fingerprint() == plain.fingerprint()
    for kind in plain.kinds:
        ours, theirs = (b.encode_images(images, kind=kind) for b in (plain, other_attention))
        torch.testing.assert_close(ours.local, theirs.local, **tight)
        torch.testing.assert_close(ours.embedding, theirs.embedding, **tight)
    ours, theirs = (
        b.encode_with_prompts(images, prompts, attention=2, mask=mask)
        for b in (plain, other_attention)
    )
    torch.testing.assert_close(ours.local, theirs.local, **tight)
    torch.testing.assert_close(ours.attention[0], theirs.attention[0], **tight)
    texts = ["a dog", "a horse"]
    torch.testing.assert_close(
        plain.encode_texts(texts), other_attention.encode_texts(texts), **tight
    )


def test_a_block_that_computes_something_else_is_not_taken_for_a_plain_one() -> None:
    block = small_backbone("ViT-B-32").model.visual.transformer.resblocks[0]
    assert plain_block(block) is not None

    block.attn = Attention(32, 2, qk_norm=True).eval()
    assert plain_block(block) is None
    block.attn = Attention(32, 2, scale_heads=True).eval()
    assert plain_block(block) is None
