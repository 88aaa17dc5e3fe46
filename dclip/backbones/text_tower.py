"""The text tower of a model of open_clip, wherever the model keeps it.

A ``CLIP`` has its parts among its own; a ``CustomTextCLIP`` (SigLIP, EVA, MobileCLIP, PE-Core) and
a ``CoCa`` in a module ``text``. That is open_clip's ``TextTransformer``, or a text model of
``transformers``, of which nothing but embeddings can be had.
"""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dclip.backbones.gradients import Tower, run_prompted_blocks

_PARTS = ("transformer", "token_embedding", "positional_embedding", "ln_final", "attn_mask")


def text_module(model: nn.Module) -> nn.Module:
    """The module that has the parts of the text tower."""
    own: Any = model
    text: nn.Module = own.text if isinstance(getattr(own, "text", None), nn.Module) else own
    return text


def text_pool_type(text: Any) -> str:
    """Which token becomes the embedding: ``"argmax"``, ``"eos"``, ``"last"`` or ``"first"``."""
    own = "text_pool_type" if hasattr(text, "text_pool_type") else "pool_type"
    pool: str = getattr(text, own, "")
    return pool


def takes_vectors(text: nn.Module) -> bool:
    """Whether vectors can be put among the embeddings of its tokens, and prompts in its blocks.

    Not where the tower is of ``transformers``, nor where a token is added behind the text (CoCa).
    """
    own: Any = text
    return all(hasattr(own, part) for part in _PARTS) and getattr(own, "cls_emb", None) is None


def size_of(text: nn.Module) -> Tower:
    """Width and number of blocks of a tower that `takes_vectors`."""
    transformer: Any = text.transformer
    return Tower(width=int(transformer.width), blocks=len(transformer.resblocks))


def may_be_cut(text: nn.Module) -> bool:
    """Whether what stands behind the end of a text has no part in its embedding."""
    return text.attn_mask is not None and text_pool_type(text) in ("argmax", "eos")


def text_states(
    text: nn.Module,
    tokens: Float[Tensor, "texts tokens width"],
    deep_prompts: Sequence[Float[Tensor, "..."]] = (),
    *,
    position: int = 1,
) -> Float[Tensor, "texts tokens width"]:
    """What leaves the text tower at every token, normed, before any of them is projected.

    Args:
        text: From `text_module`; gradients flow to its weights where these require them.
        tokens: Embeddings with their positions added; the first so many that the tower reads.
        deep_prompts: As `OpenCLIPBackbone.encode_embedded` takes them.
        position: Where the first of them stands.
    """
    own: Any = text
    length, mask = tokens.shape[1], own.attn_mask
    states, _, _ = run_prompted_blocks(
        list(own.transformer.resblocks),
        tokens,
        deep_prompts,
        position=position,
        mask=None if mask is None else mask[:length, :length].to(tokens),
    )
    normed: Tensor = own.ln_final(states)
    return normed


def pool_text(
    text: nn.Module,
    states: Float[Tensor, "texts tokens width"],
    ids: Int[Tensor, "texts tokens"],
) -> Float[Tensor, "texts dim"]:
    """One embedding a text, not normalised: what the states of `text_states` say where it ends."""
    own: Any = text
    end = own.text_eos_id if hasattr(own, "text_eos_id") else own.eos_id
    features: Tensor = open_clip.transformer.text_global_pool(
        states, ids, text_pool_type(own), eos_token_id=end
    )
    projection = own.text_projection
    if isinstance(projection, nn.Linear):
        features = projection(features)
    elif projection is not None:
        features = features @ projection
    return features


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text, those that start and end it included, however many the tower reads.

    Args:
        tokenizer: CLIP's, or one of `dclip.backbones.tokenizers`.
        text: Any.
    """
    own = isinstance(tokenizer, open_clip.SimpleTokenizer)  # which encodes without start and end
    return len(tokenizer.encode(text)) + (2 if own else 0)


def to_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Int[Tensor, "texts tokens"]:
    """The ids of texts that are not too long, padded to the length the tower reads."""
    ids: Tensor = tokenizer(list(texts), context_length=length)
    return ids.to(torch.int64)
