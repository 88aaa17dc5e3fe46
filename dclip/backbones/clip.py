"""CLIP through open_clip: the weights and blocks are its own, the path to local features is ours.

The trunk runs once an image; both the global embedding and the local features are read off its end.

* ResNet: stem to ``layer4``; local features by the value path of the attention pool
  (`dclip.backbones.value_projection`), the global embedding by the attention pool itself.
* ViT: all blocks as they are, then the final layer norm and the projection on every token. The
  class token gives the global embedding, the patch tokens the local features.

The other kinds of local features change the pool, or what the last blocks make of the patch tokens
(`dclip.backbones.vv_attention`).

The positional embedding is resized for each call and never written back, so images of any size,
square or not, may follow one another. It is resized bicubically, for ``vv`` bilinearly.
"""

import functools
import hashlib
import importlib.resources
import json
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from dclip.backbones import DEFAULT_RESOLUTION, ImageFeatures
from dclip.backbones.gradients import (
    Positions,
    PromptedFeatures,
    Tower,
    as_rows,
    check_prompts,
    run_prompted_blocks,
)
from dclip.backbones.released import find_weights
from dclip.backbones.value_projection import (
    attention_pool,
    attention_pool_tokens,
    resize_positional_embedding,
    value_projection,
)
from dclip.backbones.vv_attention import (
    NEIGHBOURHOOD,
    VV_BLOCKS,
    attention_pool_qk,
    attention_pool_vv,
    run_blocks,
)
from dclip.backbones.weights import load_strictly, read_state_dict
from dclip.texts import EMBEDDED, embedded_stem

RANDOM_SEED = 0
"""Seed of the weights that ``pretrained="random"`` stands for."""

TEXT_BATCH = 256

_LARGEST_PIXEL = 30.0  # normalised ones stay below 3; white is 255

# Change a line whenever the same weights come to give other features of that kind. That of "value"
# is part of every fingerprint.
_FEATURE_PATHS = {
    "value": "value path, bicubic positions, v1",
    "vv": f"v-v attention in the pool or {VV_BLOCKS} blocks, bilinear positions, v1",
    "sclip": "q-q and k-k attention in the last block, bicubic positions, v1",
    "clearclip": "q-q attention of the last block alone, bicubic positions, v1",
    "naclip": (
        f"k-k attention of the last block alone, neighbourhood {NEIGHBOURHOOD:g}, bicubic"
        " positions, v1"
    ),
    "maskclip": "values of the last block, bicubic positions, v1",
    "qk": "CLIP's own attention in the pool, every token asking, bicubic positions, v1",
}
_RESNET_KINDS = ("value", "vv", "qk")
_VIT_KINDS = ("value", "vv", "sclip", "clearclip", "naclip", "maskclip")

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class OpenCLIPBackbone:
    """A frozen ``open_clip.CLIP`` as a `dclip.backbones.Backbone`.

    The model is put into eval mode and its parameters are frozen, in place. `encode_images` and
    `encode_texts` record no gradient. `encode_embedded` and `encode_with_prompts` do, for what they
    are given (`dclip.backbones.gradients`), in the weights' dtype: float32 as `load_backbone` loads
    them.

    A ResNet offers the kinds ``value``, ``vv`` and ``qk``; a ViT ``value``, ``vv``, ``sclip``,
    ``clearclip``, ``naclip`` and ``maskclip``, unless its blocks are of open_clip's variants
    (``qk_norm`` and the like), for which those formulas are not defined: then ``value`` only.

    Args:
        model: An ``open_clip.CLIP`` with a ``ModifiedResNet`` or ``VisionTransformer`` image tower.
        tokenizer: The ``open_clip.SimpleTokenizer`` that belongs to it.
        name: How reports call it.
        resolution: Side in pixels images are resized to, a multiple of the stride. None: the side
            the image tower was built for.
        include_global_token: Whether the mean token precedes the locations. None: yes for a ResNet;
            a ViT has none.
        mean: Channel means of the training images, in [0, 1].
        std: Channel deviations of the training images.

    Raises:
        ValueError: If the image tower is of another kind, or an argument does not fit it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: open_clip.SimpleTokenizer,
        *,
        name: str,
        resolution: int | None = None,
        include_global_token: bool | None = None,
        mean: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN,
        std: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        if not isinstance(model, open_clip.CLIP):
            raise ValueError(
                f"{name}: a {type(model).__name__} is not supported, only open_clip.CLIP is"
            )
        tower = model.visual
        if isinstance(tower, ModifiedResNet):
            self.stride = 32
            locations = len(tower.attnpool.positional_embedding) - 1
            native_rows = native_columns = round(locations**0.5)
            has_mean_token = True
            kinds: tuple[str, ...] = _RESNET_KINDS
        elif isinstance(tower, VisionTransformer):
            _check_vision_transformer(tower, name)
            self.stride = tower.patch_size[0]
            native_rows, native_columns = tower.grid_size
            has_mean_token = False
            blocks = tower.transformer.resblocks
            is_plain = all(isinstance(block, ResidualAttentionBlock) for block in blocks)
            kinds = _VIT_KINDS if is_plain else ("value",)
        else:
            raise ValueError(
                f"{name}: an image tower of type {type(tower).__name__} is not supported;"
                " open_clip's ModifiedResNet (RN50, RN101) and VisionTransformer (ViT-B-16) are"
            )
        if include_global_token and not has_mean_token:
            raise ValueError(
                f"include_global_token=True, but {name} is a ViT, which has no mean token; leave it"
                " out"
            )
        if resolution is None and native_rows != native_columns:
            raise ValueError(f"{name} was built for images that are not square; give a resolution")

        self.name = name
        self.model = model.eval().requires_grad_(False)
        tower.to(memory_format=torch.channels_last)  # convolutions are up to half as fast again
        self.tokenizer = tokenizer
        self.native_grid: tuple[int, int] = (native_rows, native_columns)
        self.embed_dim = int(tower.output_dim)
        self.resolution = native_rows * self.stride if resolution is None else resolution
        self.include_global_token = (
            has_mean_token if include_global_token is None else include_global_token
        )
        self.kinds: tuple[str, ...] = kinds
        self.text_tower = _size_of(model.transformer)
        self.image_tower: Tower | None = None
        self.offers: tuple[str, ...] = ("token embeddings",)
        if isinstance(tower, VisionTransformer):
            self.image_tower = _size_of(tower.transformer)
            self.offers += ("visual prompts", "attention") if is_plain else ("visual prompts",)
        self.mean = mean
        self.std = std
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
        return scale

    def to(self, device: torch.device | str) -> "OpenCLIPBackbone":
        """This same backbone, its weights moved to ``device``."""
        self.model.to(device)
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of locations of an image of ``height`` by ``width`` pixels.

        Raises:
            ValueError: If a side is not a positive multiple of the stride.
        """
        stride = self.stride
        for side in (height, width):
            if side < stride or side % stride:
                below = max(side // stride, 1) * stride
                near = str(below) if side < stride else f"{below} or {below + stride}"
                raise ValueError(
                    f"{self.name} takes images whose sides are multiples of {stride} pixels, not"
                    f" {height} x {width}; in place of {side} take {near}"
                )
        return height // stride, width // stride

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
        tower = self.model.visual
        with torch.no_grad():
            if isinstance(tower, ModifiedResNet):
                embedding, local = _encode_by_resnet(tower, images, self.native_grid, grid, kind)
                if not self.include_global_token:
                    local = local[:, 1:]
                return ImageFeatures(embedding, local)
            return ImageFeatures(*_encode_by_vit(tower, images, self.native_grid, grid, kind))

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """One embedding a text, as open_clip's ``encode_text`` gives it, not normalised.

        Raises:
            ValueError: If there is no text, or one is too long to be read to its end.
        """
        ids = self.tokenize(texts)
        with torch.no_grad():
            return torch.cat(
                [self.model.encode_text(batch) for batch in torch.split(ids, TEXT_BATCH)]
            )

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "texts tokens"]:
        """The ids of each text's tokens, padded with zeros to the length the text tower reads.

        Raises:
            ValueError: If there is no text, or one is too long to be read to its end.
        """
        if isinstance(texts, str):
            raise ValueError(f"expected a sequence of texts, got the one text {texts!r}")
        if not texts:
            raise ValueError("no texts to encode")
        length = self.model.context_length
        for text in texts:
            tokens = len(self.tokenizer.encode(text)) + 2  # and the tokens that start and end it
            if tokens > length:
                raise ValueError(
                    f"{self.name} reads {length} tokens and a text has {tokens}; shorten {text!r}"
                )
        ids: Tensor = self.tokenizer(list(texts), context_length=length)
        return ids.to(self.device)

    def embed_tokens(self, ids: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens width"]:
        """The embedding of each token, before positions are added.

        Args:
            ids: From `tokenize`.
        """
        embeddings: Tensor = self.model.token_embedding(ids.to(self.device))
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
        model = self.model
        ids = ids.to(self.device)
        self._check_embedded(embeddings, ids)
        if self._may_be_cut:
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
        tokens = embeddings.to(self.device, model.positional_embedding.dtype)
        tokens = tokens + model.positional_embedding[: tokens.shape[1]]
        return pool_text(model, text_states(model, tokens, deep_prompts, position=position), ids)

    @property
    def _may_be_cut(self) -> bool:
        """Whether what stands behind the end of a text has no part in its embedding."""
        model = self.model
        return model.attn_mask is not None and model.text_pool_type in ("argmax", "eos")

    def _check_embedded(self, embeddings: Tensor, ids: Tensor) -> None:
        """Refuse embeddings that are not of the ids, and ids that are not whole texts."""
        model = self.model
        if ids.shape != embeddings.shape[:2] or embeddings.shape[2] != self.text_tower.width:
            raise ValueError(
                f"{self.name}: embeddings of shape {list(embeddings.shape)} do not belong to ids of"
                f" shape {list(ids.shape)}; it takes [texts, tokens, {self.text_tower.width}] and"
                " [texts, tokens]"
            )
        length, whole = ids.shape[1], model.context_length
        if length > whole or (length < whole and not self._may_be_cut):
            raise ValueError(f"{self.name} reads {model.context_length} tokens, not {length}")
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
        tower, size = self.model.visual, self.image_tower
        if size is None:
            raise ValueError(
                f"{self.name} has a ResNet as image tower: visual prompts, at the input or deeper,"
                " and attention of the last blocks are not available; take a ViT, such as ViT-B-16"
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
        tokens = _tokens_of_vit(tower, images, self.native_grid, grid, positions)
        behind = tokens.shape[1]
        if prompts is not None:
            tokens = torch.cat([tokens, as_rows(prompts, len(images)).to(tokens)], dim=1)
        if mask is not None:
            _check_mask(mask, len(images), tokens.shape[1], said)
        tokens, weights, entering = run_prompted_blocks(
            list(tower.transformer.resblocks),
            tower.ln_pre(tokens),
            deep_prompts,
            position=behind,
            mask=None if mask is None else mask.to(tokens),
            attention=attention,
            heads=heads,
            own_values=own_values,
        )
        embedding, local = _project_tokens(tower, tokens[:, :behind])
        return PromptedFeatures(embedding, local, weights, entering)

    def feature_path(self, kind: str) -> str:
        """How local features of a kind are made: attention, interpolation of positions, version.

        Raises:
            ValueError: If the kind is unknown.
        """
        self._check_kind(kind)
        return _FEATURE_PATHS[kind]

    def _check_kind(self, kind: str) -> None:
        """Refuse a kind that is not on offer, naming those that are."""
        if kind not in self.kinds:
            raise ValueError(
                f"unknown kind of features {kind!r}; {self.name} offers {', '.join(self.kinds)}"
            )

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the weights, the architecture and the value path.

        Weights enter by name, dtype, shape and bytes; the architecture by the types of the modules
        and their numbers of heads, which weights do not tell (GELU and QuickGELU have the same).
        Computed once: the weights are taken to be frozen.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(_FEATURE_PATHS["value"].encode())
            for name, module in sorted(self.model.named_modules()):
                heads = getattr(module, "num_heads", "")
                digest.update(f"\n{name} {type(module).__name__} {heads}".encode())
            for name, weight in sorted(self.model.state_dict().items()):
                digest.update(f"\n{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
                flat = weight.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


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


def load_tiny(
    name: str,
    *,
    pretrained: str | None,
    resolution: int | None,
    include_global_token: bool | None,
) -> OpenCLIPBackbone:
    """A small CLIP that comes with the package, or its architecture with other weights.

    Args:
        name: ``tiny`` or ``tiny-vit``.
        pretrained: None for the packaged weights, ``"random"``, or a local file.
        resolution: Side in pixels; None for the side it was trained at.
        include_global_token: As in `OpenCLIPBackbone`.

    Raises:
        ValueError: If there are no such weights, or they do not fit.
    """
    folder = importlib.resources.files("dclip.world")
    stem = embedded_stem(name)
    config_file, weights_file = folder / f"{stem}.json", folder / f"{stem}.safetensors"
    if not config_file.is_file() or (pretrained is None and not weights_file.is_file()):
        raise ValueError(
            f"the weights of the {name} CLIP are missing from {folder}; train them with 'python -m"
            f" dclip.world.pretraining --model {name} --output {stem}.safetensors', or take a"
            " larger model such as RN101"
        )
    config = json.loads(config_file.read_text())
    if pretrained is None:
        with importlib.resources.as_file(weights_file) as path:
            model = _build(config, path)
    else:
        model = _build(config, None if pretrained == "random" else Path(pretrained))
    return OpenCLIPBackbone(
        model,
        _tokenizer(),
        name=name if pretrained is None else f"{name}/{Path(pretrained).name}",
        resolution=resolution,
        include_global_token=include_global_token,
    )


def load_open_clip(
    name: str,
    *,
    pretrained: str | None,
    resolution: int | None,
    include_global_token: bool | None,
) -> OpenCLIPBackbone:
    """An architecture of open_clip with released weights, random ones, or those of a file.

    Args:
        name: Architecture, with ``/`` or ``-``: ``"ViT-B/16"``.
        pretrained: None for ``"openai"``; a tag of open_clip's; ``"random"``; or a local file.
        resolution: Side in pixels; None for 448.
        include_global_token: As in `OpenCLIPBackbone`.

    Raises:
        ValueError: If the architecture, the tag or the file is unknown or does not fit.
        OSError: If weights have to be fetched and cannot be.

    Warns:
        UserWarning: If the weights come from a file and the architecture is in use both with GELU
            and with QuickGELU. The weights do not say which; the name does
            (``"ViT-B-16-quickgelu"``).
    """
    architecture = name.replace("/", "-")
    config = _architecture_config(name, architecture)
    pretrained = "openai" if pretrained is None else pretrained
    tags = {
        tag: open_clip.get_pretrained_cfg(architecture, tag)
        for tag in open_clip.list_pretrained_tags_by_model(architecture)
    }
    preprocessing = {}
    path: Path | None = None
    if pretrained in tags:
        tag = tags[pretrained]
        config["quick_gelu"] = bool(tag.get("quick_gelu", False))
        preprocessing = {"mean": tuple(tag["mean"]), "std": tuple(tag["std"])}
        own = f"{architecture.removesuffix('-quickgelu')}{'-quickgelu' * config['quick_gelu']}"
        path = find_weights(tag, f"{architecture}/{pretrained}", architecture=own)
    elif pretrained != "random":
        path = Path(pretrained)
        if path.suffix not in _WEIGHT_SUFFIXES and not path.is_file():
            known = ["random", *tags]
            near = get_close_matches(pretrained, known) or known
            raise ValueError(
                f"no weights {pretrained!r} for {architecture}: neither a file nor one of"
                f" {', '.join(near)}"
            )
        config["quick_gelu"] = _quick_gelu_of_a_file(architecture, config, tags)
    model = _build(config, path)
    return OpenCLIPBackbone(
        model,
        _tokenizer(),
        name=f"{architecture}/{Path(pretrained).name}",
        resolution=DEFAULT_RESOLUTION if resolution is None else resolution,
        include_global_token=include_global_token,
        **preprocessing,
    )


def text_states(
    model: open_clip.CLIP,
    tokens: Float[Tensor, "texts tokens width"],
    deep_prompts: Sequence[Float[Tensor, "..."]] = (),
    *,
    position: int = 1,
) -> Float[Tensor, "texts tokens width"]:
    """What leaves the text tower at every token, normed, before any of them is projected.

    Args:
        model: Gradients flow to its weights where these require them.
        tokens: Embeddings with their positions added; the first so many that the tower reads.
        deep_prompts: As `OpenCLIPBackbone.encode_embedded` takes them.
        position: Where the first of them stands.
    """
    length, mask = tokens.shape[1], model.attn_mask
    states, _, _ = run_prompted_blocks(
        list(model.transformer.resblocks),
        tokens,
        deep_prompts,
        position=position,
        mask=None if mask is None else mask[:length, :length].to(tokens),
    )
    normed: Tensor = model.ln_final(states)
    return normed


def pool_text(
    model: open_clip.CLIP,
    states: Float[Tensor, "texts tokens width"],
    ids: Int[Tensor, "texts tokens"],
) -> Float[Tensor, "texts dim"]:
    """One embedding a text, not normalised: what the states of `text_states` say where it ends."""
    features: Tensor = open_clip.transformer.text_global_pool(
        states, ids, model.text_pool_type, eos_token_id=model.text_eos_id
    )
    projection = model.text_projection
    if isinstance(projection, nn.Linear):
        features = projection(features)
    elif projection is not None:
        features = features @ projection
    return features


def embed_images(
    model: open_clip.CLIP, images: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images dim"]:
    """Global embeddings of normalised images, not normalised, with gradients to the weights.

    At the resolution that the tower was built for they are open_clip's ``encode_image``; at others
    positions are resized bicubically.

    Args:
        model: With a ``ModifiedResNet`` or ``VisionTransformer`` as image tower.
        images: Sides are multiples of the tower's stride.
    """
    tower = model.visual
    height, width = images.shape[-2:]
    images = images.to(model.logit_scale.dtype).contiguous(memory_format=torch.channels_last)
    if isinstance(tower, ModifiedResNet):
        rows = round((len(tower.attnpool.positional_embedding) - 1) ** 0.5)
        grid = height // 32, width // 32
        return _encode_by_resnet(tower, images, (rows, rows), grid, "value")[0]
    stride = tower.patch_size[0]
    grid = height // stride, width // stride
    return _encode_by_vit(tower, images, tower.grid_size, grid, "value")[0]


def _encode_by_resnet(
    tower: ModifiedResNet,
    images: Float[Tensor, "images 3 height width"],
    native_grid: tuple[int, int],
    grid: tuple[int, int],
    kind: str,
) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images tokens dim"]]:
    """Attention pool, and value path or v-v attention, over one and the same last map."""
    feature_map = tower.stem(images)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        feature_map = layer(feature_map)
    pool = tower.attnpool
    resize = functools.partial(
        resize_positional_embedding, pool.positional_embedding, native_grid=native_grid, grid=grid
    )
    tokens = attention_pool_tokens(feature_map, resize())
    embedding = attention_pool(tokens, pool)
    if kind == "vv":
        tokens = attention_pool_tokens(feature_map, resize(mode="bilinear"))
        return embedding, attention_pool_vv(tokens, pool)
    if kind == "qk":
        return embedding, attention_pool_qk(tokens, pool)
    return embedding, value_projection(tokens, value=pool.v_proj, output=pool.c_proj)


def _encode_by_vit(
    tower: VisionTransformer,
    images: Float[Tensor, "images 3 height width"],
    native_grid: tuple[int, int],
    grid: tuple[int, int],
    kind: str,
) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images patches dim"]]:
    """Final layer norm and projection on every token: class token first, patch tokens after it."""
    positions: Positions = "bilinear" if kind == "vv" else "bicubic"
    tokens = tower.ln_pre(_tokens_of_vit(tower, images, native_grid, grid, positions))
    if kind == "value":
        tokens = tower.transformer(tokens)
    else:
        tokens = run_blocks(list(tower.transformer.resblocks), tokens, kind=kind, grid=grid)
    return _project_tokens(tower, tokens)


def _tokens_of_vit(
    tower: VisionTransformer,
    images: Float[Tensor, "images 3 height width"],
    native_grid: tuple[int, int],
    grid: tuple[int, int],
    positions: Positions,
) -> Float[Tensor, "images tokens channels"]:
    """Class token and patches, positions added, before the first norm."""
    patches = tower.conv1(images).flatten(2).transpose(1, 2)
    class_token = tower.class_embedding.expand(len(images), 1, -1)
    resized = resize_positional_embedding(
        tower.positional_embedding,
        native_grid=native_grid,
        grid=grid,
        mode="bicubic" if positions == "bicubic" else "bilinear",
    )
    if positions == "bilinear float16" and grid != native_grid:
        resized = resized.half().to(patches)
    return torch.cat([class_token, patches], dim=1) + resized


def _check_mask(mask: Tensor, images: int, tokens: int, said: str) -> None:
    """Refuse a mask of attention that is of other tokens or images."""
    if mask.shape not in ((tokens, tokens), (images, tokens, tokens)):
        raise ValueError(
            f"{said} takes masks of shape [{tokens}, {tokens}] or [{images}, {tokens}, {tokens}],"
            f" not {list(mask.shape)}"
        )


def _project_tokens(
    tower: VisionTransformer, tokens: Float[Tensor, "images tokens width"]
) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images patches dim"]]:
    """Final norm and projection of every token: the class token's, and the patches'."""
    # the norm is token by token, so that it does not matter whether open_clip pools before or after
    projected = tower.ln_post(tokens) @ tower.proj
    return projected[:, 0], projected[:, 1:]


def _size_of(transformer: open_clip.transformer.Transformer) -> Tower:
    """Width and number of blocks."""
    return Tower(width=transformer.width, blocks=len(transformer.resblocks))


def _check_vision_transformer(tower: VisionTransformer, name: str) -> None:
    """Refuse the variants of open_clip's ViT whose pooling is not the class token's."""
    if tower.attn_pool is not None:
        raise ValueError(f"{name}: a ViT with an attentional pool is not supported")
    if tower.pool_type != "tok":
        raise ValueError(
            f"{name}: a ViT that pools by {tower.pool_type!r} is not supported, only one that pools"
            " by its class token"
        )
    if tower.patch_size[0] != tower.patch_size[1]:
        raise ValueError(
            f"{name}: patches of {tower.patch_size} pixels are not supported, only squares"
        )


def _architecture_config(name: str, architecture: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture, if our path to local features covers it."""
    names = open_clip.list_models()
    if architecture not in names:
        lower = {known.lower(): known for known in [*EMBEDDED, *names]}
        near = [lower[match] for match in get_close_matches(architecture.lower(), lower)]
        suggestion = f"did you mean {', '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"unknown backbone {name!r}; {suggestion}Give 'tiny', 'tiny-vit', an open_clip"
            " architecture such as 'RN101' or 'ViT-B-16', or 'package.module:factory'"
        )
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    parts = {
        "image tower from timm": config["vision_cfg"].get("timm_model_name"),
        "text tower from Hugging Face": config["text_cfg"].get("hf_model_name"),
        "tokenizer from Hugging Face": config["text_cfg"].get("hf_tokenizer_name"),
        "caption decoder": config.get("multimodal_cfg"),
    }
    for part, value in parts.items():
        if value:
            raise ValueError(
                f"{name} has a {part}, which is not supported; take an architecture of CLIP's own"
                " kind, such as RN50, RN101, ViT-B-32, ViT-B-16 or ViT-L-14"
            )
    return config


def _quick_gelu_of_a_file(
    architecture: str, config: dict[str, Any], tags: dict[str, dict[str, Any]]
) -> bool:
    """Whether weights from a file want QuickGELU: by the name, or as all released weights do."""
    named: bool = config.get("quick_gelu", False)
    released = {bool(tag.get("quick_gelu", False)) for tag in tags.values()}
    if released == {True}:
        return True
    if len(released) == 2 and not named:
        warnings.warn(
            f"{architecture} is in use with GELU and with QuickGELU, and a file does not say which:"
            f" taking GELU. For OpenAI's weights name the backbone '{architecture}-quickgelu'",
            stacklevel=4,
        )
    return named


def _build(config: dict[str, Any], weights: Path | None) -> open_clip.CLIP:
    """A model with the weights of a file, or open_clip's initial ones drawn from `RANDOM_SEED`."""
    state_dict = None if weights is None else read_state_dict(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = open_clip.CLIP(**config)
    if state_dict is not None:
        load_strictly(model, state_dict, source=str(weights))
        return model
    for module in model.visual.modules():
        # A convolution after a ReLU starts out dividing the variance by six. With the running
        # variance at its initial one, nothing of the image would be left after the seven of a
        # random ResNet (three of the stem, four shortcuts; the other branches start at zero).
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.fill_(1 / 6)
    return model


@functools.cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    """CLIP's byte-pair encoding; reading its vocabulary takes a moment."""
    return open_clip.SimpleTokenizer()
