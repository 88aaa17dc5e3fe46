"""CLIP through open_clip: the weights and blocks are its own, the path to local features is ours.

The trunk runs once an image; both the global embedding and the local features are read off its end,
in the way of the tower's family (`dclip.backbones.towers`). Other kinds of local features change
the pool, or what the last blocks make of the patch tokens (`dclip.backbones.vv_attention`).

Images of any size that the tower takes, square or not, may follow one another.
"""

from collections.abc import Sequence
from typing import Any, Literal

import open_clip
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dclip.architectures import grid_of
from dclip.backbones import ImageFeatures
from dclip.backbones.gradients import (
    Positions,
    PromptedFeatures,
    Tower,
    as_rows,
    check_prompts,
    run_prompted_blocks,
)
from dclip.backbones.record import fingerprint_of, former_fingerprint_of
from dclip.backbones.text_tower import (
    count_tokens,
    may_be_cut,
    pool_text,
    size_of,
    takes_vectors,
    text_module,
    text_states,
    to_ids,
)
from dclip.backbones.towers.opening import open_tower
from dclip.backbones.towers.vit import ViTTower
from dclip.data.preparation import SQUARE, Preparation

TEXT_BATCH = 256

_LARGEST_PIXEL = 30.0  # normalised ones stay below 3; white is 255


class OpenCLIPBackbone:
    """A frozen model of open_clip as a `dclip.backbones.Backbone`.

    The model is put into eval mode and its parameters are frozen, in place. `encode_images` and
    `encode_texts` record no gradient. `encode_embedded` and `encode_with_prompts` do, for what they
    are given (`dclip.backbones.gradients`), in the weights' dtype: float32 as `load_backbone` loads
    them.

    Every tower offers the kind ``value``. A CLIP ResNet offers ``vv`` and ``qk`` besides; a ViT
    with plain blocks ``vv``, ``sclip``, ``clearclip``, ``naclip`` and ``maskclip``; a tower that
    norms the mean of its locations, with a linear head behind it, ``affine``
    (`dclip.backbones.towers.heads`).

    Args:
        model: An ``open_clip.CLIP``, ``CustomTextCLIP`` or ``CoCa``.
        tokenizer: The tokenizer of open_clip that belongs to it.
        name: How reports call it.
        resolution: Side in pixels images are resized to: a multiple of the stride, or the side the
            image tower was built for. None: that side.
        include_global_token: Whether the mean token precedes the locations. None: yes for a CLIP
            ResNet; no other tower has one.
        mean: Channel means of the training images, in [0, 1].
        std: Channel deviations of the training images.
        preparation: How images are resized.

    Raises:
        ValueError: If there is no way to local features, or an argument does not fit the model.
    """

    text_tower: Tower  # only where vectors can enter the text tower

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        resolution: int | None = None,
        include_global_token: bool | None = None,
        mean: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN,
        std: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD,
        preparation: Preparation = SQUARE,
    ) -> None:
        if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa):
            raise ValueError(
                f"{name}: a {type(model).__name__} is not supported; open_clip's CLIP,"
                " CustomTextCLIP and CoCa are"
            )
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tower = open_tower(model.visual, name)
        has_mean_token = self.tower.has_mean_token
        if include_global_token and not has_mean_token:
            raise ValueError(
                f"include_global_token=True, but {name} has no mean token, which only the attention"
                " pool of a CLIP ResNet has; leave it out"
            )
        rows, columns = self.tower.native_size
        if resolution is None and rows != columns:
            raise ValueError(f"{name} was built for images that are not square; give a resolution")

        model.visual.to(memory_format=torch.channels_last)  # convolutions: up to half as fast again
        self.tokenizer = tokenizer
        self.text: Any = text_module(model)
        self.embed_dim = _embed_dim(model)
        self.stride = self.tower.stride
        self.resolution = rows if resolution is None else resolution
        self.include_global_token = (
            has_mean_token if include_global_token is None else include_global_token
        )
        self.kinds: tuple[str, ...] = tuple(self.tower.paths)
        self.offers: tuple[str, ...] = ()
        if takes_vectors(self.text) and isinstance(tokenizer, open_clip.SimpleTokenizer):
            self.text_tower = size_of(self.text)
            self.offers += ("token embeddings",)
        self.image_tower: Tower | None = None
        if isinstance(self.tower, ViTTower) and self.tower.pooling == "token":
            self.image_tower = size_of(self.tower.module)
            is_plain = bool(self.tower.blocks)
            self.offers += ("visual prompts", "attention") if is_plain else ("visual prompts",)
        self.mean = mean
        self.std = std
        self.preparation = preparation
        self._fingerprint: str | None = None
        self.grid(self.resolution, self.resolution)

    def __repr__(self) -> str:
        side = self.resolution
        rows, columns = self.grid(side, side)
        token = " and the mean token" if self.include_global_token else ""
        return (
            f"OpenCLIPBackbone({self.name}: {side} px, {rows} x {columns} locations{token} of "
            f"{self.embed_dim} dimensions, kinds {', '.join(self.kinds)}, on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The multiplier of cosines that the model was trained with, about 100."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale.reshape(())

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What is added to scaled cosines before a sigmoid; None if it was trained by a softmax.

        A model with one (SigLIP) tells presence by itself: where ``logit_scale * cosine +
        logit_bias`` is above zero.
        """
        bias: Tensor | None = self.model.logit_bias
        return None if bias is None else bias.reshape(())

    @property
    def context_length(self) -> int:
        """Tokens that the text tower reads, those that start and end a text included."""
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return int(self.text.context_length)
        return int(self.tokenizer.context_length)

    @property
    def native_grid(self) -> tuple[int, int]:
        """Rows and columns of locations at the size that the image tower was built for."""
        return self.tower.native_grid

    def to(self, device: torch.device | str) -> "OpenCLIPBackbone":
        """This same backbone, its weights moved to ``device``."""
        self.model.to(device)
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of locations of an image of ``height`` by ``width`` pixels.

        Raises:
            ValueError: If a side is not a positive multiple of the stride.
        """
        native = self.tower.native_size, self.tower.native_grid
        return grid_of(height, width, self.stride, native, self.name)

    def encode_images(
        self, images: Float[Tensor, "images 3 height width"], *, kind: str = "value"
    ) -> ImageFeatures:
        """Global embedding and local features of normalised images.

        Args:
            images: RGB, of any size that `grid` takes, minus `mean` and over `std`.
            kind: Kind of the local features, one of `kinds`.

        Returns:
            Features in the weights' dtype and on their device, not normalised. ``embedding`` is
            CLIP's own for every kind: at the resolution the tower was built for, open_clip's
            ``encode_image``. At others a ViT's differs slightly between ``vv`` and the rest, since
            its positions enter before the trunk and CLIP Surgery resizes them bilinearly.

        Raises:
            ValueError: If the kind is unknown, a side is not a multiple of the stride, or the
                images are not normalised: integers, or numbers from 0 to 255.

        References:
            DCLIP, arXiv:2502.02977, section 3 and appendix D.4 (ViT); for the kinds other than
            ``value`` see `dclip.backbones.vv_attention`.
        """
        self._check_kind(kind)
        grid = self.grid(*images.shape[-2:])
        check_normalised(images)
        images = images.to(self.device, self.model.logit_scale.dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            embedding, local = self.tower.encode(images, kind=kind, grid=grid)
        if self.tower.has_mean_token and not self.include_global_token:
            local = local[:, 1:]
        return ImageFeatures(embedding, local)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """One embedding a text, as open_clip's ``encode_text`` gives it, not normalised.

        Raises:
            ValueError: If there is no text, or one is too long to be read to its end.
        """
        ids = self.tokenize(texts)
        with torch.no_grad():
            return torch.cat(
                [
                    self.model.encode_text(batch, normalize=False)  # CoCa would, by itself
                    for batch in torch.split(ids, TEXT_BATCH)
                ]
            )

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "texts tokens"]:
        """The ids of each text's tokens, padded to the length the text tower reads.

        Raises:
            ValueError: If there is no text, one is too long to be read to its end, or the tokenizer
                does not belong to the text tower.
        """
        if isinstance(texts, str):
            raise ValueError(f"expected a sequence of texts, got the one text {texts!r}")
        if not texts:
            raise ValueError("no texts to encode")
        length = self.context_length
        for text in texts:
            tokens = count_tokens(self.tokenizer, text)
            if tokens > length:
                raise ValueError(
                    f"{self.name} reads {length} tokens and a text has {tokens}; shorten {text!r}"
                )
        ids = to_ids(self.tokenizer, texts, length)
        if (largest := int(ids.max())) >= (known := int(self.text.vocab_size)):
            raise ValueError(
                f"{self.name}: its tokenizer gives token {largest}, and its text tower knows"
                f" {known}; one of the two is another model's"
            )
        return ids.to(self.device)

    def embed_tokens(self, ids: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens width"]:
        """The embedding of each token, before positions are added.

        Args:
            ids: From `tokenize`.
        """
        embeddings: Tensor = self.text.token_embedding(ids.to(self.device))
        return embeddings

    def encode_embedded(
        self,
        embeddings: Float[Tensor, "texts tokens width"],
        ids: Int[Tensor, "..."],
        deep_prompts: Sequence[Float[Tensor, "..."]] = (),
        *,
        position: int = 1,
    ) -> Float[Tensor, "texts dim"]:
        """One embedding a text, not normalised; without prompts that of `encode_texts`.

        Gradients flow to ``embeddings`` and ``deep_prompts`` where these require them.

        Args:
            embeddings: From `embed_tokens`, with learned vectors put in the place of some. Where
                the tower reads from left to right, as CLIP's does, what stands behind the end of
                the longest text is not read, and may be cut from both these and the ids.
            ids: The tokens they stand for; they tell where a text ends.
            deep_prompts: Entry i, of shape [prompts, width] or [texts, prompts, width], takes the
                place of the states at ``position`` and after, when block i (from 0) is done.
            position: Where the first prompt stands; 1 is behind the token that starts a text.

        Raises:
            ValueError: If shapes do not fit, there are more prompts than blocks to follow, or a
                prompt would take the place of the end of a text.
        """
        text = self.text
        ids = ids.to(self.device)
        self._check_embedded(embeddings, ids)
        if may_be_cut(text):
            longest = int((ids == self.tokenizer.eot_token_id).int().argmax(dim=1).max()) + 1
            embeddings, ids = embeddings[:, :longest], ids[:, :longest]
        if deep_prompts:
            check_prompts(
                deep_prompts,
                rows=len(ids),
                tower=self.text_tower,
                depth=len(deep_prompts),
                said=f"the text tower of {self.name}",
            )
            first_end = int((ids == self.tokenizer.eot_token_id).int().argmax(dim=1).min())
            number = deep_prompts[0].shape[-2]
            if position < 0 or position + number > first_end:
                raise ValueError(
                    f"{number} prompts from position {position} on do not fit: the shortest text"
                    f" ends at position {first_end}"
                )
        tokens = embeddings.to(self.device, text.positional_embedding.dtype)
        tokens = tokens + text.positional_embedding[: tokens.shape[1]]
        return pool_text(text, text_states(text, tokens, deep_prompts, position=position), ids)

    def _check_embedded(self, embeddings: Tensor, ids: Tensor) -> None:
        """Refuse embeddings that are not of the ids, and ids that are not whole texts."""
        if ids.shape != embeddings.shape[:2] or embeddings.shape[2] != self.text_tower.width:
            raise ValueError(
                f"{self.name}: embeddings of shape {list(embeddings.shape)} do not belong to ids of"
                f" shape {list(ids.shape)}; it takes [texts, tokens, {self.text_tower.width}] and"
                " [texts, tokens]"
            )
        length, whole = ids.shape[1], self.context_length
        if length > whole or (length < whole and not may_be_cut(self.text)):
            raise ValueError(f"{self.name} reads {whole} tokens, not {length}")
        ends = (ids == self.tokenizer.eot_token_id).any(dim=1)
        if not ends.all():
            raise ValueError(
                f"text {int(ends.int().argmin())} of {len(ids)} has no token that ends it; take ids"
                " from tokenize, and cut none before its end"
            )

    def encode_with_prompts(
        self,
        images: Float[Tensor, "images 3 height width"],
        prompts: Float[Tensor, "..."] | None = None,
        deep_prompts: Sequence[Float[Tensor, "..."]] = (),
        *,
        attention: int = 0,
        heads: Literal["each", "mean"] = "each",
        mask: Float[Tensor, "*images tokens tokens"] | None = None,
        own_values: bool = False,
        positions: Positions = "bicubic",
    ) -> PromptedFeatures:
        """Global embedding and local features of normalised images beside prompts; of a ViT only.

        Gradients flow to the prompts, and to the images, where these require them.

        Args:
            images: RGB, of any size that `grid` takes, minus `mean` and over `std`.
            prompts: Of shape [prompts, width] or [images, prompts, width]. They follow the class
                token and the patches into the tower, without a position. None: what `encode_images`
                gives.
            deep_prompts: Entry i takes the place of the states of ``prompts`` when block i (from 0)
                is done; as many vectors as ``prompts`` has.
            attention: Of how many last blocks to return the attention and what enters it.
            heads: Whether the attention is that of each head, or the mean of the heads.
            mask: Added to the logits of the attention of every block: of shape [tokens, tokens], or
                [images, tokens, tokens]; who asks comes first.
            own_values: In the last block each token, the class token too, keeps its own value
                (kind ``maskclip``). The attention returned is what it would have been.
            positions: How the positional embedding is resized to another grid than its own.

        Returns:
            Features of the kind ``value``, unless said otherwise, in the weights' dtype and on
            their device.

        Raises:
            ValueError: If the image tower is a ResNet, shapes do not fit, there are more prompts
                than blocks to follow, or the images are not as `encode_images` takes them.
        """
        tower, size = self.tower, self.image_tower
        if size is None or not isinstance(tower, ViTTower):
            raise ValueError(
                f"{self.name} has no ViT of CLIP's own as image tower: visual prompts, at the input"
                " or deeper, and attention of the last blocks are not available; take one, such as"
                " ViT-B-16"
            )
        if not 0 <= attention <= size.blocks or (attention and "attention" not in self.offers):
            raise ValueError(
                f"attention of the last {attention} blocks was asked for; {self.name} has"
                f" {size.blocks} blocks"
                + ("" if "attention" in self.offers else ", which do not give theirs")
            )
        if (mask is not None or own_values) and "attention" not in self.offers:
            raise ValueError(f"{self.name} has blocks whose attention cannot be changed")
        if deep_prompts and prompts is None:
            raise ValueError("deep prompts take the place of prompts; there are none at the input")
        every = [] if prompts is None else [prompts, *deep_prompts]
        said = f"the image tower of {self.name}"
        check_prompts(every, rows=len(images), tower=size, depth=len(deep_prompts), said=said)
        grid = self.grid(*images.shape[-2:])
        check_normalised(images)
        images = images.to(self.device, self.model.logit_scale.dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        tokens = tower.embed(images, grid, positions)
        behind = tokens.shape[1]
        if prompts is not None:
            tokens = torch.cat([tokens, as_rows(prompts, len(images)).to(tokens)], dim=1)
        if mask is not None:
            _check_mask(mask, len(images), tokens.shape[1], said)
        tokens, weights, entering = run_prompted_blocks(
            list(tower.module.transformer.resblocks),
            tower.module.ln_pre(tokens),
            deep_prompts,
            position=behind,
            mask=None if mask is None else mask.to(tokens),
            attention=attention,
            heads=heads,
            own_values=own_values,
        )
        embedding, local = tower.pool(tokens[:, :behind])
        return PromptedFeatures(embedding, local, weights, entering)

    def feature_path(self, kind: str) -> str:
        """How local features of a kind are made: attention, interpolation of positions, version.

        Raises:
            ValueError: If the kind is unknown.
        """
        self._check_kind(kind)
        return self.tower.paths[kind]

    def _check_kind(self, kind: str) -> None:
        """Refuse a kind that is not on offer, naming those that are."""
        if kind not in self.kinds:
            raise ValueError(
                f"unknown kind of features {kind!r}; {self.name} offers {', '.join(self.kinds)}"
            )

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the weights, the architecture and the value path.

        Weights enter by name, dtype, shape and bytes, the architecture by a record of our own
        (`dclip.backbones.record`), so that another version of open_clip gives the same. Computed
        once: the weights are taken to be frozen.
        """
        if self._fingerprint is None:
            self.tower.restore()
            self._fingerprint = fingerprint_of(self.model, self.tower, self.text)
        return self._fingerprint

    def former_fingerprint(self) -> str:
        """What `fingerprint` gave before version 0.2: features kept under it are the same."""
        self.tower.restore()
        return former_fingerprint_of(self.model, self.tower)


def _embed_dim(model: nn.Module) -> int:
    """Dimension of the joint space, read off what is projected into it."""
    visual: Any = model.visual
    if hasattr(visual, "output_dim"):
        return int(visual.output_dim)
    for layer in reversed(list(visual.head.modules())):
        if isinstance(layer, nn.Linear):
            return layer.out_features
    trunk = visual.trunk
    return int(trunk.num_classes or trunk.num_features)


def check_normalised(images: Tensor) -> None:
    """Refuse pixels that are not in CLIP's normalisation, as far as one can see.

    Values are looked at in main memory only, where that costs next to nothing.

    Raises:
        ValueError: If they are integers, or larger than any normalised value.
    """
    told = ""
    if not images.is_floating_point():
        told = f"of dtype {images.dtype}"
    elif images.device.type == "cpu" and images.numel():
        largest = float(images.detach().amax())
        told = f"with values up to {largest:g}" if largest > _LARGEST_PIXEL else ""
    if told:
        raise ValueError(
            f"encode_images takes images in CLIP's normalisation, not pixels {told}; make them by "
            "dclip.data.pixels.image_to_tensor(image, backbone.resolution, backbone.mean, "
            "backbone.std), or of uint8 pixels [images, height, width, 3] by "
            "dclip.data.pixels.normalise(pixels, backbone.mean, backbone.std)"
        )


def _check_mask(mask: Tensor, images: int, tokens: int, said: str) -> None:
    """Refuse a mask of attention that is of other tokens or images."""
    if mask.shape not in ((tokens, tokens), (images, tokens, tokens)):
        raise ValueError(
            f"{said} takes masks of shape [{tokens}, {tokens}] or [{images}, {tokens}, {tokens}],"
            f" not {list(mask.shape)}"
        )
