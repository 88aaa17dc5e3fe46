"""open_clip's own ViT, in the three forms its configurations have.

* class token (CLIP, MetaCLIP 2): final norm and projection on every token;
* mean of the patches, normed after it (CLIPA): the same on every patch;
* attentional pool (CoCa): the pool on each token alone, then norm and projection.

The positional embedding is resized for each call and never written back.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dclip.backbones import ImageFeatures
from dclip.backbones.blocks import plain_blocks
from dclip.backbones.gradients import Positions
from dclip.backbones.towers.heads import LocationHead
from dclip.backbones.value_projection import resize_positional_embedding
from dclip.backbones.vv_attention import BLOCK_PATHS, run_blocks

_FAMILIES = {"token": "class token", "mean": "normed mean", "pool": "attention pool"}


class ViTTower:
    """A ``VisionTransformer`` of open_clip as a `dclip.backbones.towers.ImageTower`.

    Args:
        module: The tower.
        name: How messages call the model.

    Raises:
        ValueError: It pools in a way of which no local features are known.
    """

    has_mean_token = False

    def __init__(self, module: VisionTransformer, name: str) -> None:
        self.module = module
        self.pooling = _pooling(module, name)
        if module.patch_size[0] != module.patch_size[1]:
            raise ValueError(
                f"{name}: patches of {module.patch_size} pixels are not supported, only squares"
            )
        self.family = _FAMILIES[self.pooling]
        self.stride = int(module.patch_size[0])
        self.native_grid = (int(module.grid_size[0]), int(module.grid_size[1]))
        rows, columns = module.image_size
        self.native_size = (int(rows), int(columns))
        self.blocks = plain_blocks(module.transformer.resblocks)
        self.head = LocationHead(
            norm=module.ln_post if self.pooling != "pool" else None,
            head=_Projection(module),
            is_linear=True,
        )
        # Change a line whenever the same weights come to give other features of that kind.
        value = {
            "token": "value path, bicubic positions, v1",
            "mean": "norm and projection of each patch, bicubic positions, v1",
            "pool": "attentional pool of each patch alone, bicubic positions, v1",
        }[self.pooling]
        self.paths = {"value": value}
        if self.pooling == "mean" and module.final_ln_after_pool:
            self.paths["affine"] = "norm by the mean's deviation, bicubic positions, v1"
        if self.blocks:
            self.paths |= BLOCK_PATHS

    def embed(
        self,
        images: Float[Tensor, "images 3 height width"],
        grid: tuple[int, int],
        positions: Positions = "bicubic",
    ) -> Float[Tensor, "images tokens channels"]:
        """Class token and patches with their positions, before the norm of the first block."""
        tower = self.module
        patches = tower.conv1(images).flatten(2).transpose(1, 2)
        # to torch.export a length is a number, and only a shape may be of any number of images
        class_token = tower.class_embedding.expand(images.shape[0], 1, -1)
        resized = resize_positional_embedding(
            tower.positional_embedding,
            native_grid=self.native_grid,
            grid=grid,
            mode="bicubic" if positions == "bicubic" else "bilinear",
        )
        if positions == "bilinear float16" and grid != self.native_grid:
            resized = resized.half().to(patches)
        return torch.cat([class_token, patches], dim=1) + resized

    def pool(
        self, tokens: Float[Tensor, "images tokens channels"], *, kind: str = "value"
    ) -> ImageFeatures:
        """Global embedding and local features of what leaves the last block."""
        tower = self.module
        if self.pooling == "token":
            # token by token, so that it does not matter whether the norm comes before the pool
            projected = self.head(tokens)
            return ImageFeatures(projected[:, 0], projected[:, 1:])
        patches = tokens[:, 1:]
        if self.pooling == "mean":
            if not tower.final_ln_after_pool:
                local = self.head(patches)
                return ImageFeatures(local.mean(dim=1), local)
            mean = patches.mean(dim=1)
            by = mean if kind == "affine" else None
            return ImageFeatures(self.head(mean), self.head(patches, by=by))
        pooled = tower.ln_post(tower.attn_pool(tokens))
        embedding = pooled[:, 0] if tower.pool_type == "tok" else pooled[:, 1:].mean(dim=1)
        return ImageFeatures(embedding @ tower.proj, self._pool_alone(patches))

    def _pool_alone(
        self, patches: Float[Tensor, "images patches channels"]
    ) -> Float[Tensor, "images patches dim"]:
        """The attentional pool on each token as the only one: with one key the attention is 1."""
        tower = self.module
        pool, attention = tower.attn_pool, tower.attn_pool.attn
        if attention.in_proj_weight is not None:
            weight = attention.in_proj_weight.chunk(3)[2]
        else:
            weight = attention.v_proj_weight
        bias = attention.in_proj_bias.chunk(3)[2]
        values = nn.functional.linear(pool.ln_k(patches), weight, bias)
        local: Tensor = tower.ln_post(attention.out_proj(values)) @ tower.proj
        return local

    def encode(
        self, images: Float[Tensor, "images 3 height width"], *, kind: str, grid: tuple[int, int]
    ) -> ImageFeatures:
        """All blocks, as they are or the last ones changed, and the pool."""
        tokens = self.embed(images, grid, "bilinear" if kind == "vv" else "bicubic")
        tokens = self.module.ln_pre(tokens)
        if kind not in BLOCK_PATHS:
            return self.pool(self.module.transformer(tokens), kind=kind)
        plain, changed = run_blocks(self.blocks, tokens, kind=kind, grid=grid)
        if self.pooling == "token":
            return self.pool(torch.cat([plain[:, :1], changed[:, 1:]], dim=1))
        return ImageFeatures(self.pool(plain).embedding, self.pool(changed).local)

    def restore(self) -> None:
        """Nothing of it ever changes."""

    def record(self) -> dict[str, object]:
        """Patch, pool and heads."""
        tower = self.module
        attentions = [block.attn for block in tower.transformer.resblocks]
        if self.pooling == "pool":
            attentions.append(tower.attn_pool.attn)
        return {
            "tower": "clip vit",
            "patch": self.stride,
            "pool": self.pooling,
            "norm after pool": bool(tower.final_ln_after_pool),
            "query": tower.pool_type if self.pooling == "pool" else "",
            "heads": [int(each.num_heads) for each in attentions],
        }


@dataclass(frozen=True)
class _Projection:
    """The tower's last matrix, which it holds as a bare parameter."""

    tower: VisionTransformer

    def __call__(self, vectors: Tensor) -> Tensor:
        projected: Tensor = vectors @ self.tower.proj
        return projected


def _pooling(module: VisionTransformer, name: str) -> Literal["token", "mean", "pool"]:
    """How a ViT pools.

    Raises:
        ValueError: In a way that has no local features.
    """
    if module.attn_pool is not None:
        if module.attn_pool_contrastive is not None or module.pool_type not in ("tok", "avg"):
            raise ValueError(
                f"{name}: a ViT with two attentional pools is not supported; no released CLIP has"
                " them"
            )
        return "pool"
    if module.pool_type not in ("tok", "avg"):
        raise ValueError(
            f"{name}: a ViT that pools by {module.pool_type!r} is not supported, only one that"
            " pools by its class token, the mean of its patches or an attentional pool"
        )
    return "token" if module.pool_type == "tok" else "mean"


def find(module: nn.Module, name: str) -> ViTTower | None:
    """The tower, if the module is one.

    Raises:
        ValueError: It is, and pools in a way that has no local features.
    """
    return ViTTower(module, name) if isinstance(module, VisionTransformer) else None
