"""A copy of a CLIP whose weights train, and which reads longer texts than CLIP does.

The positions of its text tower are Long-CLIP's: the first rows of CLIP's table stay as they are, as
captions were mostly as short when CLIP was trained; the others are drawn out, and train.

References:
    Zhang et al., "Long-CLIP: Unlocking the Long-Text Capability of CLIP", ECCV 2024,
    arXiv:2403.15378, section 3.1.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import open_clip
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.text_tower import pool_text, text_states
from dclip.backbones.towers.opening import open_tower

KEPT_POSITIONS = 20
"""Rows of CLIP's table that stay: Long-CLIP found those behind them to be hardly trained."""

STRETCH = 4
"""Positions that the others are drawn out to, each."""


def stretch_positions(
    positions: Float[Tensor, "rows width"], *, kept: int = KEPT_POSITIONS, stretch: int = STRETCH
) -> Float[Tensor, "longer width"]:
    r"""A table of positions for longer texts: the first rows, then points between the others.

    With rows :math:`p` and :math:`s` the stretch, row :math:`\text{kept} + s i + k` is
    :math:`(1 - k/s) \, p_{\text{kept} + i} + (k/s) \, p_{\text{kept} + i + 1}`. Behind the last
    row the table goes on as straight as it ended: :math:`p_n = 2 p_{n-1} - p_{n-2}`.

    Args:
        positions: CLIP's own, 77 for OpenAI's.
        kept: Rows that stay, fewer than there are.
        stretch: Rows for each of the others, at least 1.

    Returns:
        ``kept + stretch * (rows - kept)`` rows: 248 of 77.

    Raises:
        ValueError: No row is left to be drawn out, or there are fewer than two.

    References:
        Long-CLIP's code, whose result for 77 rows this is.

    Example:
        >>> stretch_positions(torch.tensor([[0.0], [1.0], [3.0]]), kept=1, stretch=2).flatten()
        tensor([0., 1., 2., 3., 4.])
    """
    rows = len(positions)
    if rows < 2 or not 0 <= kept < rows or stretch < 1:
        raise ValueError(
            f"a text tower of {rows} positions cannot keep {kept} and have the others drawn out "
            f"{stretch} times; keep fewer than it has"
        )
    drawn = positions[kept:]
    behind = torch.cat([drawn[1:], (2 * positions[-1] - positions[-2])[None]])
    points = [(1 - k / stretch) * drawn + (k / stretch) * behind for k in range(stretch)]
    return torch.cat([positions[:kept], torch.stack(points, dim=1).flatten(0, 1)])


class Tokens(NamedTuple):
    """Texts as a text tower reads them.

    Attributes:
        ids: Padded with zeros behind the token that ends each.
        ends: Place of that token.
        cut: How many texts were longer, and end early.
    """

    ids: Int64[Tensor, "texts tokens"]
    ends: Int64[Tensor, " texts"]
    cut: int


def tokenize_cut(texts: Sequence[str], tokenizer: open_clip.SimpleTokenizer, length: int) -> Tokens:
    """Texts to tokens; of those that are too long, the first so many, as CLIP cuts them.

    Args:
        texts: Any number.
        tokenizer: Of a CLIP.
        length: Tokens that its text tower reads, those that start and end a text included.
    """
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    ends, cut, room = [], 0, length - 2
    for row, text in enumerate(texts):
        words = tokenizer.encode(text)
        cut += len(words) > room
        whole = [tokenizer.sot_token_id, *words[:room], tokenizer.eot_token_id]
        ids[row, : len(whole)] = torch.tensor(whole)
        ends.append(len(whole) - 1)
    return Tokens(ids, torch.tensor(ends, dtype=torch.int64), cut)


class LongCLIP(nn.Module):
    """A CLIP of open_clip with weights of its own, all of which train, and longer texts.

    It starts as the CLIP it copies, but for the positions behind those that are kept. Frozen are
    these, CLIP's logit scale, which no embedding takes part of, and the running statistics of a
    ResNet's BatchNorm, whose batches would be another thing on each worker.

    Args:
        backbone: Whose model is copied.
        kept: Positions that stay; all of them where nothing is drawn out.
        stretch: Positions that each of the others is drawn out to; 1 leaves their number.

    Attributes:
        length: Tokens of the longest text it reads.
        width: Numbers in a token.
        heads: Of the text tower's attention.

    Raises:
        ValueError: Too many positions are to be kept, or the text tower is not CLIP's own.
    """

    def __init__(
        self, backbone: OpenCLIPBackbone, *, kept: int = KEPT_POSITIONS, stretch: int = STRETCH
    ) -> None:
        super().__init__()
        if not isinstance(backbone.model, open_clip.CLIP):
            raise ValueError(
                f"{backbone.name} keeps its text tower in a module of its own, whose positions"
                " cannot be drawn out; take a CLIP with CLIP's own text tower, such as ViT-B-16"
            )
        model = copy.deepcopy(backbone.model).requires_grad_(True)
        table = stretch_positions(model.positional_embedding.detach(), kept=kept, stretch=stretch)
        del model.positional_embedding  # none of its own; they stand here, in two parts
        self.kept_positions = nn.Parameter(table[:kept].clone(), requires_grad=False)
        self.positions = nn.Parameter(table[kept:].clone())
        self.length, self.width = len(table), int(table.shape[1])
        self.heads = int(model.transformer.resblocks[0].attn.num_heads)
        model.context_length = self.length
        if model.attn_mask is not None:
            mask = model.attn_mask.new_full((self.length, self.length), -torch.inf)
            model.attn_mask = mask.triu_(1)
        for scale in (model.logit_scale, model.logit_bias):
            if scale is not None:
                scale.requires_grad_(False)
        self.model = model
        self._tower = open_tower(model.visual, backbone.name)
        self._reads_onward = model.attn_mask is not None and model.text_pool_type != "last"

    def train(self, mode: bool = True) -> Any:
        """As of any module, but BatchNorm keeps to its running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def shortened(self, tokens: Tokens) -> Tokens:
        """The same without the columns behind the longest text, where these are not read.

        A tower that reads from left to right says the same of all that is left.
        """
        if not self._reads_onward or not len(tokens.ids):
            return tokens
        longest = int(tokens.ends.max()) + 1
        return tokens._replace(ids=tokens.ids[:, :longest])

    def embed_images(
        self, images: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images dim"]:
        """Global embeddings of normalised images, of any length, with gradients to the weights.

        At the resolution that the tower was built for they are open_clip's ``encode_image``.

        Args:
            images: Sides are multiples of the tower's stride.
        """
        tower = self._tower
        height, width = images.shape[-2:]
        images = images.to(self.model.logit_scale.dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        grid = height // tower.stride, width // tower.stride
        return tower.encode(images, kind="value", grid=grid).embedding

    def token_states(self, ids: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens width"]:
        """Normed states of all tokens, padding included."""
        table = torch.cat([self.kept_positions, self.positions])[: ids.shape[1]]
        return text_states(self.model, self.model.token_embedding(ids) + table)

    def embed_texts(
        self, states: Float[Tensor, "texts tokens width"], ids: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts dim"]:
        """Embeddings of texts, of any length, from their states."""
        return pool_text(self.model, states, ids)
