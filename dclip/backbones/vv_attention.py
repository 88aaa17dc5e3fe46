r"""Local features from attention of like with like: CLIP Surgery's v-v and its relatives.

In CLIP's attention queries ask keys, and the answers gather what serves the global embedding. All
kinds here let tokens ask tokens by one and the same map, so that a location listens to those that
resemble it. With :math:`Q, K, V` the maps of the normed tokens, :math:`d` the width of a head and
:math:`a \in \{Q, K, V\}`, head by head,

.. math:: A_a = \mathrm{softmax}\!\left(a a^\top / \sqrt{d}\right) V, \qquad S_a = W_o A_a + b_o

========= ================================================= ============== ===========
kind      patch tokens before the final norm                blocks changed backbones
========= ================================================= ============== ===========
vv        :math:`x + \sum S_V`, no FFN                      the last 6     ResNet, ViT
sclip     :math:`y + FFN(y), y = x + W_o (A_Q + A_K) + b_o` the last       ViT
clearclip :math:`S_Q`                                       the last       ViT
naclip    :math:`S_K`, near patches favoured                the last       ViT
maskclip  :math:`y + FFN(y), y = x + W_o V + b_o`           the last       ViT
qk        CLIP's own attention, every token asking          none           ResNet
========= ================================================= ============== ===========

A ResNet has no blocks; there ``vv`` changes the attention pool. The last two are what the others
are compared with: MaskCLIP, which a ResNet has as ``value``, and plain CLIP, which a ViT has so.
"""

from collections.abc import Sequence

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones.blocks import AttentionMaps, PlainBlock

VV_BLOCKS = 6
"""How many of a ViT's last blocks CLIP Surgery changes, whatever their number."""

NEIGHBOURHOOD = 5.0
"""Standard deviation, in patches, of NACLIP's Gaussian."""

# Change a line whenever the same weights come to give other features of that kind.
VV_PATH = f"v-v attention in the pool or {VV_BLOCKS} blocks, bilinear positions, v1"
"""How features of the kind ``vv`` are made (`dclip.backbones.Backbone.feature_path`)."""

BLOCK_PATHS = {
    "vv": VV_PATH,
    "sclip": "q-q and k-k attention in the last block, bicubic positions, v1",
    "clearclip": "q-q attention of the last block alone, bicubic positions, v1",
    "naclip": (
        f"k-k attention of the last block alone, neighbourhood {NEIGHBOURHOOD:g}, bicubic"
        " positions, v1"
    ),
    "maskclip": "values of the last block, bicubic positions, v1",
}
"""The kinds that change the last blocks of a ViT, and how features of each are made."""


def attention_pool_vv(
    tokens: Float[Tensor, "images tokens width"], pool: open_clip.modified_resnet.AttentionPool2d
) -> Float[Tensor, "images tokens dim"]:
    r"""A ResNet's attention pool with v-v attention: one local feature a token, the mean's first.

    .. math:: z = W_c \, \mathrm{softmax}\!\left(V V^\top / \sqrt{d}\right) V + b_c

    The mean token is treated as any other; its feature is not CLIP's global embedding.

    Args:
        tokens: From :func:`dclip.backbones.value_projection.attention_pool_tokens`.
        pool: The tower's last layer.

    References:
        Li et al., "CLIP Surgery", arXiv:2304.05653; ``clip/clip_surgery_model.py`` of the authors,
        whose larger scale for ResNets is switched off there, and here.
    """
    values = _split(pool.v_proj(tokens), pool.num_heads)
    mixed: Tensor = pool.c_proj(_merge(F.scaled_dot_product_attention(values, values, values)))
    return mixed


def attention_pool_qk(
    tokens: Float[Tensor, "images tokens width"], pool: open_clip.modified_resnet.AttentionPool2d
) -> Float[Tensor, "images tokens dim"]:
    r"""A ResNet's attention pool as CLIP has it, every token asking: the mean's answer comes first.

    .. math:: z = W_c \, \mathrm{softmax}\!\left(Q K^\top / \sqrt{d}\right) V + b_c

    Feature 0 is CLIP's global embedding; the others are what a location would make of the image.

    Args:
        tokens: From :func:`dclip.backbones.value_projection.attention_pool_tokens`.
        pool: The tower's last layer.
    """
    maps = (pool.q_proj, pool.k_proj, pool.v_proj)
    queries, keys, values = (_split(each(tokens), pool.num_heads) for each in maps)
    mixed: Tensor = pool.c_proj(_merge(F.scaled_dot_product_attention(queries, keys, values)))
    return mixed


def run_blocks(
    blocks: Sequence[PlainBlock],
    tokens: Float[Tensor, "images tokens width"],
    *,
    kind: str,
    grid: tuple[int, int],
    prefix: int = 1,
) -> tuple[Float[Tensor, "images tokens width"], Float[Tensor, "images tokens width"]]:
    r"""All blocks of a ViT, the last ones changed for the patches and not for the class token.

    CLIP's own tokens run through all blocks as they are and give the class token. The patch tokens
    part from them at the first changed block and gather what :math:`S` makes of CLIP's own tokens.

    Args:
        blocks: The tower's blocks, first to last.
        tokens: What enters the first block, the class token first.
        kind: ``"vv"``, ``"sclip"``, ``"clearclip"``, ``"naclip"`` or ``"maskclip"``.
        grid: Rows and columns of the patches.
        prefix: Tokens before those of the patches: the class token, or none.

    Returns:
        CLIP's own tokens, and those of the kind, both before the final norm. Of the second only
        the patches mean anything.

    References:
        vv: Li et al., "CLIP Surgery", arXiv:2304.05653.
        sclip: Wang, Mei, Yuille, "SCLIP", ECCV 2024, arXiv:2312.01597.
        clearclip: Lan et al., "ClearCLIP", ECCV 2024, arXiv:2407.12442.
        naclip: Hajimiri, Ben Ayed, Dolz, "Pay Attention to Your Neighbours", WACV 2025,
        arXiv:2404.08181; the reduced architecture, which is its default.
        maskclip: Zhou, Loy, Dai, "MaskCLIP", ECCV 2022, arXiv:2112.01071; with residual and FFN,
        as in the authors' code.
    """
    num_changed = VV_BLOCKS if kind == "vv" else 1
    for block in blocks[:-num_changed]:
        tokens = block.whole(tokens)
    last = blocks[-1]
    if kind == "vv":
        patches = tokens
        for block in blocks[-num_changed:]:
            patches = patches + _branch(block, tokens, by="v")
            tokens = block.whole(tokens)
    else:
        if kind in ("sclip", "maskclip"):
            patches = tokens + _branch(last, tokens, by="qk" if kind == "sclip" else "")
            patches = last.add_feed_forward(patches)
        elif kind == "clearclip":
            patches = _branch(last, tokens, by="q")
        else:
            assert kind == "naclip", kind
            bias = neighbourhood_bias(grid)[1 - prefix :, 1 - prefix :]
            patches = _branch(last, tokens, by="k", bias=bias)
        tokens = last.whole(tokens)
    return tokens, patches


def self_attention(
    tokens: Float[Tensor, "images tokens width"],
    maps: AttentionMaps,
    *,
    by: str,
    bias: Float[Tensor, "tokens tokens"] | None = None,
) -> Float[Tensor, "images tokens width"]:
    r""":math:`S_a` of the module's formula, through an attention layer of CLIP's.

    Args:
        tokens: What enters the layer, normed.
        maps: Of the layer.
        by: Letters of the maps that tokens are compared by, of ``"qkv"``. The answers of several
            are added before the output map: ``"qk"`` is SCLIP's correlative self-attention. With
            none, a token answers itself: MaskCLIP.
        bias: Added to the logits, the same for all images and heads.
    """
    heads = {letter: maps.apply(letter, tokens) for letter in sorted({*by, "v"})}
    values = heads["v"]
    mask = None if bias is None else bias.to(values)
    answers = [
        F.scaled_dot_product_attention(heads[letter], heads[letter], values, attn_mask=mask)
        for letter in by
    ]
    return maps.merge(torch.stack(answers).sum(dim=0) if answers else values)


def neighbourhood_bias(
    grid: tuple[int, int], *, deviation: float = NEIGHBOURHOOD
) -> Float[Tensor, "tokens tokens"]:
    r"""NACLIP's preference for near patches: :math:`\exp(-\|p - p'\|^2 / 2\sigma^2)`.

    Args:
        grid: Rows and columns of the patches.
        deviation: :math:`\sigma`, in patches.

    Returns:
        What is added to the logits, in float64: 1 from a patch to itself, less to the farther
        ones, 0 from and to the class token, which comes first.

    Example:
        >>> neighbourhood_bias((1, 2), deviation=1.0)
        tensor([[0.0000, 0.0000, 0.0000],
                [0.0000, 1.0000, 0.6065],
                [0.0000, 0.6065, 1.0000]], dtype=torch.float64)
    """
    along = []
    for side in grid:
        positions = torch.arange(side, dtype=torch.float64)
        distance = positions[:, None] - positions
        along.append(torch.exp(-(distance**2) / (2 * deviation**2)))
    return F.pad(torch.kron(*along), (1, 0, 1, 0))


def _branch(
    block: PlainBlock,
    tokens: Float[Tensor, "images tokens width"],
    *,
    by: str,
    bias: Float[Tensor, "tokens tokens"] | None = None,
) -> Float[Tensor, "images tokens width"]:
    """What a block's attention would add to the tokens, were it of like with like."""
    answer = self_attention(block.norm_1(tokens), block.maps, by=by, bias=bias)
    added: Tensor = block.scale_1(answer)
    return added


def _split(
    tokens: Float[Tensor, "images tokens width"], num_heads: int
) -> Float[Tensor, "images heads tokens part"]:
    """The tokens of each head."""
    return tokens.reshape(*tokens.shape[:2], num_heads, -1).transpose(1, 2)


def _merge(
    heads: Float[Tensor, "images heads tokens part"],
) -> Float[Tensor, "images tokens width"]:
    """Heads side by side again."""
    return heads.transpose(1, 2).flatten(2)
