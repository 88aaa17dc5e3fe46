"""Images and captions in one space: the encoders that retrieval compares."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dclip.backbones import Backbone
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.long_text import tokenize_cut
from dclip.data.pixels import normalise


class Encoded(NamedTuple):
    """Texts in the joint space.

    Attributes:
        features: Of any length.
        mask_logits: A dimension is open from 0 on; None where there are no masks.
        cut: How many texts were too long to be read to their end.
    """

    features: Float[Tensor, "texts dim"]
    mask_logits: Float[Tensor, "texts dim"] | None
    cut: int


@runtime_checkable
class PairEncoder(Protocol):
    """What encodes images and texts of any words; a method that has both may be retrieved by."""

    def embed_images(
        self, pixels: UInt8[Tensor, "images height width 3"]
    ) -> Float[Tensor, "images dim"]:
        """Embeddings of images, of any length."""
        ...

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Features of texts; those that are too long are read as far as it goes."""
        ...


class FrozenPairs:
    """A frozen CLIP as a `PairEncoder`.

    Args:
        backbone: Any; one that is no CLIP of open_clip refuses what is too long itself.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def embed_images(
        self, pixels: UInt8[Tensor, "images height width 3"]
    ) -> Float[Tensor, "images dim"]:
        """CLIP's own global embeddings."""
        images = normalise(pixels, self.backbone.mean, self.backbone.std)
        return self.backbone.encode_images(images).embedding

    def encode(self, texts: Sequence[str]) -> Encoded:
        """CLIP's own embeddings of texts, cut where CLIP would cut them."""
        backbone = self.backbone
        if not isinstance(backbone, OpenCLIPBackbone):
            return Encoded(backbone.encode_texts(texts), None, 0)
        tokens = tokenize_cut(texts, backbone.tokenizer, backbone.model.context_length)
        with torch.no_grad():
            features = backbone.encode_embedded(backbone.embed_tokens(tokens.ids), tokens.ids)
        return Encoded(features, None, tokens.cut)
