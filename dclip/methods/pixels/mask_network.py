"""SmartCLIP's mask network: the tokens of a text say which dimensions of an image it speaks of."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn


class MaskNetwork(nn.Module):
    """One block of a transformer over a text's token states, then attention pooling.

    The block is CLIP's (norm first, QuickGELU, four times the width inside), without a causal mask.
    The pooled vector is the mask's logits: there is neither a projection nor a norm behind it, so
    that a token has to be as wide as CLIP's joint space.

    Args:
        width: Of a token, and of the mask.
        heads: Of the attention; as many as CLIP's text tower has.

    References:
        SmartCLIP, CVPR 2025, arXiv:2507.22264, as its authors' code has it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.block = ResidualAttentionBlock(width, heads, act_layer=QuickGELU)
        self.pool_score = nn.Linear(width, 1)
        self.heads = heads
        small = width**-0.5
        for weight, std in (
            (self.block.attn.in_proj_weight, small),
            (self.block.attn.out_proj.weight, small * 2**-0.5),
            (self.block.mlp.c_fc.weight, (2 * width) ** -0.5),
            (self.block.mlp.c_proj.weight, small * 2**-0.5),
            (self.pool_score.weight, small),
        ):
            nn.init.normal_(weight, std=std)
        nn.init.zeros_(self.pool_score.bias)

    def forward(
        self,
        states: Float[Tensor, "texts tokens width"],
        padding: Bool[Tensor, "texts tokens"] | None = None,
    ) -> Float[Tensor, "texts width"]:
        """Logits of the mask of each text.

        Args:
            states: What CLIP's text tower says of each token. No gradient reaches them.
            padding: True for what stands behind the end of a text, and is neither read nor pooled.
                Left out: all is, as published.
        """
        states = states.detach()
        hidden = None
        if padding is not None:
            hidden = torch.zeros_like(padding, dtype=states.dtype).masked_fill(padding, -torch.inf)
        blocked = None
        if hidden is not None:
            rows, length = hidden.shape
            blocked = hidden[:, None, None].expand(rows, self.heads, length, length).flatten(0, 1)
        block: Callable[..., Tensor] = self.block
        read = block(states, attn_mask=blocked)
        scores = self.pool_score(read)[..., 0]
        if hidden is not None:
            scores = scores + hidden
        pooled: Tensor = scores.softmax(-1)[:, None] @ read
        return pooled[:, 0]
