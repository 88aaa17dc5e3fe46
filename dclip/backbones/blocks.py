"""What has to be known of a block of a transformer to run it by a formula of our own.

Libraries write one and the same block under many names: torch's ``MultiheadAttention`` in open_clip
3, a class of open_clip's own from 4 on, timm's with the maps in a layer ``qkv``. What they compute
is the same. Here a block is taken apart by what it has, never by the name of its class.

A block is *plain* if it is CLIP's: :math:`x + A(N_1(x))`, then :math:`x + F(N_2(x))`, with no norm
of queries and keys, no gate and no rotation by position.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionMaps(NamedTuple):
    """The maps of a layer of self-attention.

    Attributes:
        weight: Of queries, keys and values, one above the other.
        bias: The same; None where there is none.
        output: From the heads, side by side, to what the layer gives.
        heads: How many there are.
    """

    weight: Float[Tensor, "three_widths width"]
    bias: Float[Tensor, " three_widths"] | None
    output: nn.Module
    heads: int

    def apply(
        self, letter: str, tokens: Float[Tensor, "images tokens width"]
    ) -> Float[Tensor, "images heads tokens part"]:
        """Queries, keys or values of tokens, head by head.

        Args:
            letter: ``"q"``, ``"k"`` or ``"v"``.
            tokens: What enters the layer, normed.
        """
        place = "qkv".index(letter)
        bias = None if self.bias is None else self.bias.chunk(3)[place]
        mapped = F.linear(tokens, self.weight.chunk(3)[place], bias)
        rows, number, width = mapped.shape  # a -1 would not do where there are no rows
        return mapped.reshape(rows, number, self.heads, width // self.heads).transpose(1, 2)

    def merge(
        self, heads: Float[Tensor, "images heads tokens part"]
    ) -> Float[Tensor, "images tokens width"]:
        """What the layer makes of the answers of its heads."""
        merged: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return merged


@dataclass(frozen=True)
class PlainBlock:
    """A plain block, taken apart.

    Attributes:
        whole: The block itself.
        maps: Those of its attention.
        norm_1: Before the attention.
        scale_1: Of what the attention adds.
        norm_2: Before the feed-forward layers.
        feed_forward: These.
        scale_2: Of what they add.
    """

    whole: nn.Module
    maps: AttentionMaps
    norm_1: nn.Module
    scale_1: nn.Module
    norm_2: nn.Module
    feed_forward: nn.Module
    scale_2: nn.Module

    def add_feed_forward(
        self, tokens: Float[Tensor, "images tokens width"]
    ) -> Float[Tensor, "images tokens width"]:
        """The second half of the block."""
        added: Tensor = self.scale_2(self.feed_forward(self.norm_2(tokens)))
        return tokens + added

    def attend(
        self,
        normed: Float[Tensor, "images tokens width"],
        mask: Float[Tensor, "*images tokens tokens"] | None,
    ) -> Float[Tensor, "images tokens width"]:
        """What the attention adds, before it is scaled.

        Args:
            normed: What enters it.
            mask: Added to the logits; one for all images, or one for each.
        """
        queries, keys, values = (self.maps.apply(letter, normed) for letter in "qkv")
        mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
        return self.maps.merge(
            F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        )

    def weights(
        self,
        normed: Float[Tensor, "images tokens width"],
        mask: Float[Tensor, "*images tokens tokens"] | None,
    ) -> Float[Tensor, "images heads tokens tokens"]:
        """Attention after the softmax: who asks, then who answers.

        Args:
            normed: What enters the attention.
            mask: Added to the logits; one for all images, or one for each.
        """
        queries, keys = (self.maps.apply(letter, normed) for letter in "qk")
        logits = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(-2, -1)
        if mask is not None:
            logits = logits + (mask[:, None] if mask.ndim == 3 else mask)
        return logits.softmax(dim=-1)


def maps_of(attention: nn.Module) -> AttentionMaps | None:
    """The maps of a layer of self-attention; None where it computes something else.

    Args:
        attention: Of torch, of open_clip or of timm.
    """
    own: Any = attention
    changed = (
        *("ln_q", "ln_k", "ln_inner", "q_norm", "k_norm", "norm", "gate", "rope", "rel_pos"),
        *("logit_scale", "head_scale", "bias_k", "bias_v"),
    )
    if not all(_does_nothing(getattr(own, name, None)) for name in changed):
        return None
    weight = getattr(own, "in_proj_weight", None)
    if isinstance(weight, Tensor):
        return AttentionMaps(weight, own.in_proj_bias, own.out_proj, int(own.num_heads))
    maps = getattr(own, "qkv", None)
    if isinstance(maps, nn.Linear) and isinstance(getattr(own, "proj", None), nn.Linear):
        return AttentionMaps(maps.weight, maps.bias, own.proj, int(own.num_heads))
    return None


# Names of the parts of a plain block, in the order of `PlainBlock`; what else must do nothing.
_PARTS = (
    (("attn", "ln_1", "ls_1", "ln_2", "mlp", "ls_2"), ("ln_attn", "ln_1_kv")),
    (("attn", "norm1", "ls1", "norm2", "mlp", "ls2"), ("gamma_1", "gamma_2", "rope")),
)


def plain_block(block: nn.Module) -> PlainBlock | None:
    """The parts of a block; None where it is not plain."""
    for names, others in _PARTS:
        parts: list[Any] = [getattr(block, name, None) for name in names]
        if not all(isinstance(part, nn.Module) for part in parts):
            continue
        if not all(_does_nothing(getattr(block, name, None)) for name in others):
            return None
        attention, *rest = parts
        maps = maps_of(attention)
        return None if maps is None else PlainBlock(block, maps, *rest)
    return None


def plain_blocks(blocks: nn.Module) -> list[PlainBlock]:
    """All blocks of a tower taken apart; empty where one of them is not plain.

    Args:
        blocks: An ``nn.ModuleList`` or ``nn.Sequential``, first block to last.
    """
    parts = [plain_block(block) for block in blocks.children()]
    return [part for part in parts if part is not None] if all(parts) else []


def _does_nothing(part: object) -> bool:
    """Whether an optional part of a layer is not there, or leaves what it is given as it is."""
    if part is None or part is False:
        return True
    if not isinstance(part, nn.Module):
        return False
    if next(part.parameters(), None) is not None:
        return False
    probe = torch.linspace(-2, 2, 8)[None]
    return bool(torch.equal(part(probe), probe))
