"""What a frozen CLIP may offer beyond features: a way in for prompts, with gradients.

Methods that learn prompts run CLIP in each step. Its weights stay as they are, but gradients have
to pass through it to the learned vectors: contexts among the embeddings of a text's tokens (CoOp,
DualCoOp), and vectors that stand in a block's tokens in either tower (MaPLe). Others look at the
attention of the last blocks, or differentiate by what enters it.

All of it is optional. A backbone says what it has in ``offers``; a method asks by `require`, which
names both where something is missing. A backbone for cached features needs none of this.

References:
    Zhou et al., "Learning to Prompt for Vision-Language Models" (CoOp), IJCV 2022,
    arXiv:2109.01134; Khattak et al., "MaPLe", CVPR 2023, arXiv:2210.03117.
"""

from collections.abc import Sequence
from typing import (
    Literal,
    NamedTuple,
    Protocol,
    get_args,
    overload,
    runtime_checkable,
)

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dclip.backbones.blocks import plain_block

Offer = Literal["token embeddings", "visual prompts", "attention"]
"""What a backbone may offer: `TextGradients`, `ImageGradients`, and of the latter the attention."""

Positions = Literal["bicubic", "bilinear", "bilinear float16"]
"""How a positional embedding is resized to another grid than its own, and whether it is rounded."""


class Tower(NamedTuple):
    """What has to be known of a transformer to make prompts for it.

    Attributes:
        width: Numbers in a token.
        blocks: How many blocks there are; deep prompts may follow all but the last.
    """

    width: int
    blocks: int


class PromptedFeatures(NamedTuple):
    """What a ViT says of images beside prompts; nothing is normalised.

    Tokens stand in this order: the class token, the patches row by row, the prompts.

    Attributes:
        embedding: The class token's embedding in the joint space.
        local: The patch tokens, normed and projected; no prompts.
        attention: Of each of the last blocks asked for, first to last, the attention weights after
            the softmax: who asks, then who answers. Of each head, or their mean.
        entering: Of the same blocks, the tokens that enter the attention, normed. They lie in the
            graph, so that ``torch.autograd.grad`` can differentiate by them (Grad-CAM).
    """

    embedding: Float[Tensor, "images dim"]
    local: Float[Tensor, "images patches dim"]
    attention: tuple[Float[Tensor, "images *heads tokens tokens"], ...] = ()
    entering: tuple[Float[Tensor, "images tokens width"], ...] = ()


@runtime_checkable
class TextGradients(Protocol):
    """A backbone that encodes texts from the embeddings of their tokens.

    The weights do not require gradients and get none; the embeddings and prompts may. ``offers``
    holds ``"token embeddings"``.
    """

    @property
    def offers(self) -> tuple[str, ...]:
        """What `require` may ask for."""
        ...

    @property
    def text_tower(self) -> Tower:
        """Size of the text transformer."""
        ...

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "texts tokens"]:
        """The ids of each text's tokens, padded behind the token that ends the text.

        Raises:
            ValueError: If there is no text, or one is too long to be read to its end.
        """
        ...

    def embed_tokens(self, ids: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens width"]:
        """The embedding of each token, before positions are added."""
        ...

    def encode_embedded(
        self,
        embeddings: Float[Tensor, "texts tokens width"],
        ids: Int[Tensor, "texts tokens"],
        deep_prompts: Sequence[Float[Tensor, "*texts prompts width"]] = (),
        *,
        position: int = 1,
    ) -> Float[Tensor, "texts dim"]:
        """One embedding a text, not normalised; without prompts that of ``encode_texts``.

        Args:
            embeddings: From `embed_tokens`, with learned vectors put in the place of some.
            ids: The tokens they stand for; they tell where a text ends.
            deep_prompts: Entry i takes the place of the states at ``position`` and after, when
                block i (from 0) is done. One for all texts, or one for each.
            position: Where the first prompt stands; 1 is behind the token that starts a text.

        Raises:
            ValueError: If shapes do not fit, there are more prompts than blocks to follow, or a
                prompt would take the place of the end of a text.
        """
        ...


@runtime_checkable
class ImageGradients(Protocol):
    """A backbone that encodes images beside prompts; its image tower is a ViT.

    The weights do not require gradients and get none; the prompts, and the images, may. ``offers``
    holds ``"visual prompts"``, and ``"attention"`` where attention can be asked for.
    """

    @property
    def offers(self) -> tuple[str, ...]:
        """What `require` may ask for."""
        ...

    @property
    def image_tower(self) -> Tower | None:
        """Size of the image transformer; None where there is none."""
        ...

    def encode_with_prompts(
        self,
        images: Float[Tensor, "images 3 height width"],
        prompts: Float[Tensor, "*images prompts width"] | None = None,
        deep_prompts: Sequence[Float[Tensor, "*images prompts width"]] = (),
        *,
        attention: int = 0,
        heads: Literal["each", "mean"] = "each",
        mask: Float[Tensor, "*images tokens tokens"] | None = None,
        own_values: bool = False,
        positions: Positions = "bicubic",
    ) -> PromptedFeatures:
        """Global embedding and local features of normalised images beside prompts.

        Args:
            images: As for ``encode_images``.
            prompts: Follow the class token and the patches into the first block, without a
                position. One for all images, or one for each. None: what ``encode_images`` gives.
            deep_prompts: Entry i takes the place of the states of ``prompts`` when block i (from 0)
                is done; as many vectors as ``prompts`` has.
            attention: Of how many last blocks to return the attention and what enters it.
            heads: Whether the attention is that of each head, or the mean of the heads, which takes
                as much less memory.
            mask: Added to the logits of the attention of every block. One for all images, or one
                for each.
            own_values: In the last block each token, the class token too, keeps its own value in
                place of what it attends to. The attention returned is what it would have been.
            positions: How the positional embedding is resized.

        Raises:
            ValueError: If the backbone has no such tower, shapes do not fit, or there are more
                prompts than blocks to follow.
        """
        ...


_PROTOCOLS: dict[str, type] = {
    "token embeddings": TextGradients,
    "visual prompts": ImageGradients,
    "attention": ImageGradients,
}
_METHODS = {
    "token embeddings": ("text_tower", "tokenize", "embed_tokens", "encode_embedded"),
    "visual prompts": ("image_tower", "encode_with_prompts"),
    "attention": ("image_tower", "encode_with_prompts"),
}


@overload
def require(backbone: object, need: Literal["token embeddings"], *, for_: str) -> TextGradients: ...
@overload
def require(
    backbone: object, need: Literal["visual prompts", "attention"], *, for_: str
) -> ImageGradients: ...
def require(backbone: object, need: str, *, for_: str) -> TextGradients | ImageGradients:
    """The backbone itself, if it offers what a method needs.

    Args:
        backbone: Any `dclip.backbones.Backbone`.
        need: ``"token embeddings"``, ``"visual prompts"`` or ``"attention"``.
        for_: Name of the method, for the message.

    Raises:
        ValueError: If the backbone does not offer it, naming the method, the backbone and what it
            lacks.

    Example:
        >>> from dclip.backbones import load_backbone
        >>> require(load_backbone("tiny"), "visual prompts", for_="MaPLe")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: MaPLe needs visual prompts, which the backbone tiny does not offer ...
    """
    if need not in _PROTOCOLS:
        known = ", ".join(get_args(Offer))
        raise ValueError(f"{for_} needs {need!r}, which no backbone offers; there are {known}")
    name = getattr(backbone, "name", type(backbone).__name__)
    offers: tuple[str, ...] = tuple(getattr(backbone, "offers", ()))
    if need not in offers:
        kind = "a CLIP of open_clip" if need == "token embeddings" else "a ViT of open_clip"
        raise ValueError(
            f"{for_} needs {need}, which the backbone {name} does not offer (it offers"
            f" {', '.join(offers) or 'features only'}); take {kind}, such as ViT-B-16"
        )
    missing = [member for member in _METHODS[need] if not hasattr(backbone, member)]
    if missing:
        raise ValueError(
            f"{for_} needs {need}, which the backbone {name} says it offers, but it lacks"
            f" {', '.join(missing)}"
        )
    assert isinstance(backbone, TextGradients | ImageGradients)
    return backbone


def logit_scale_of(backbone: object) -> float | Float[Tensor, ""]:
    """The multiplier of cosines that a CLIP was trained with; 100, OpenAI's, where it is not told.

    Args:
        backbone: Any `dclip.backbones.Backbone`; those of open_clip tell theirs.
    """
    scale: float | Tensor = getattr(backbone, "logit_scale", 100.0)
    return scale


def run_prompted_blocks(
    blocks: Sequence[nn.Module],
    tokens: Float[Tensor, "rows tokens width"],
    deep_prompts: Sequence[Float[Tensor, "... _ _"]],
    *,
    position: int,
    mask: Float[Tensor, "*rows tokens tokens"] | None = None,
    attention: int = 0,
    heads: Literal["each", "mean"] = "each",
    own_values: bool = False,
) -> tuple[
    Float[Tensor, "rows tokens width"],
    tuple[Float[Tensor, "rows *heads tokens tokens"], ...],
    tuple[Float[Tensor, "rows tokens width"], ...],
]:
    """All blocks of a tower, deep prompts put in place between them.

    Args:
        blocks: The tower's blocks, first to last; plain ones (`dclip.backbones.blocks`) where
            attention is asked for, or changed, or each row has a mask.
        tokens: What enters the first.
        deep_prompts: Entry i takes the place of the tokens at ``position`` and after, once block i
            is done; fitting in shape.
        position: Where the first prompt stands.
        mask: Added to the attention logits of every block; one for all rows, or one for each.
        attention: Of how many last blocks to return more than the tokens.
        heads: Whether to return the attention of each head, or their mean.
        own_values: In the last block each token keeps its own value.

    Returns:
        What leaves the last block; and of the last blocks asked for the attention weights and the
        normed tokens that entered the attention.
    """
    weights, entering = [], []
    for index, block in enumerate(blocks):
        is_shown = index >= len(blocks) - attention
        keeps_values = own_values and index == len(blocks) - 1
        if not is_shown and not keeps_values and (mask is None or mask.ndim == 2):
            # by keyword, as open_clip's blocks take it; timm's are never given one
            tokens = block(tokens) if mask is None else block(tokens, attn_mask=mask)
        else:  # as the block does it, but with the weights, which it throws away
            plain = plain_block(block)
            assert plain is not None
            normed = plain.norm_1(tokens)
            if is_shown:
                weight = plain.weights(normed, mask)
                weights.append(weight.mean(dim=1) if heads == "mean" else weight)
                entering.append(normed)
            if keeps_values:
                added = plain.maps.merge(plain.maps.apply("v", normed))
            elif is_shown:  # through the weights, so that gradients reach what is returned
                added = plain.maps.merge(weight @ plain.maps.apply("v", normed))
            else:
                added = plain.attend(normed, mask)
            tokens = plain.add_feed_forward(tokens + plain.scale_1(added))
        if index < len(deep_prompts):
            prompts = as_rows(deep_prompts[index], len(tokens)).to(tokens)
            behind = position + prompts.shape[1]
            tokens = torch.cat([tokens[:, :position], prompts, tokens[:, behind:]], dim=1)
    return tokens, tuple(weights), tuple(entering)


def as_rows(
    prompts: Float[Tensor, "... prompts width"], rows: int
) -> Float[Tensor, "rows prompts width"]:
    """Prompts of each row: their own where each has some, else the same ones."""
    return prompts.expand(rows, -1, -1)


def check_prompts(
    prompts: Sequence[Float[Tensor, "..."]], *, rows: int, tower: Tower, depth: int, said: str
) -> None:
    """Refuse prompts that do not fit each other, the rows or the tower.

    Args:
        prompts: All of one tower, those at the input included.
        rows: Texts or images they are for.
        tower: The tower they are for.
        depth: How many of them follow a block.
        said: How a message calls the tower: ``"the text tower of tiny"``.

    Raises:
        ValueError: Naming what does not fit.
    """
    if depth > tower.blocks - 1:
        raise ValueError(
            f"{said} has {tower.blocks} blocks, so that deep prompts follow up to"
            f" {tower.blocks - 1} of them, not {depth}"
        )
    for each in prompts:
        shape = list(each.shape)
        if len(shape) not in (2, 3) or shape[-1] != tower.width or (shape[:-2] not in ([], [rows])):
            raise ValueError(
                f"{said} takes prompts of shape [prompts, {tower.width}] or [{rows}, prompts,"
                f" {tower.width}], not {shape}"
            )
        if shape[-2] != prompts[0].shape[-2] or not shape[-2]:
            raise ValueError(
                f"{said} takes the same number of prompts, 1 or more, everywhere; there are"
                f" {sorted({int(other.shape[-2]) for other in prompts})}"
            )
