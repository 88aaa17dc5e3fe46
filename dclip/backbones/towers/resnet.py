"""CLIP's ResNet: an attention pool in which the mean of all locations asks.

Its local features take the attention out of the pool (`dclip.backbones.value_projection`), or put
another one in (`dclip.backbones.vv_attention`).
"""

import functools

from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from dclip.backbones import ImageFeatures
from dclip.backbones.blocks import PlainBlock
from dclip.backbones.value_projection import (
    attention_pool,
    attention_pool_tokens,
    resize_positional_embedding,
    value_projection,
)
from dclip.backbones.vv_attention import VV_PATH, attention_pool_qk, attention_pool_vv


class ResNetTower:
    """A ``ModifiedResNet`` as a `dclip.backbones.towers.ImageTower`."""

    family = "value path"
    stride = 32
    has_mean_token = True

    def __init__(self, module: ModifiedResNet) -> None:
        self.module = module
        side = round((len(module.attnpool.positional_embedding) - 1) ** 0.5)
        self.native_grid = (side, side)
        self.native_size = (side * self.stride, side * self.stride)
        self.blocks: list[PlainBlock] = []
        # Change a line whenever the same weights come to give other features of that kind.
        self.paths = {
            "value": "value path, bicubic positions, v1",
            "vv": VV_PATH,
            "qk": "CLIP's own attention in the pool, every token asking, bicubic positions, v1",
        }

    def encode(
        self, images: Float[Tensor, "images 3 height width"], *, kind: str, grid: tuple[int, int]
    ) -> ImageFeatures:
        """Attention pool, and value path or another attention, over one and the same last map."""
        tower = self.module
        feature_map = tower.stem(images)
        for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            feature_map = layer(feature_map)
        pool = tower.attnpool
        resize = functools.partial(
            resize_positional_embedding,
            pool.positional_embedding,
            native_grid=self.native_grid,
            grid=grid,
        )
        tokens = attention_pool_tokens(feature_map, resize())
        embedding = attention_pool(tokens, pool)
        if kind == "vv":
            tokens = attention_pool_tokens(feature_map, resize(mode="bilinear"))
            return ImageFeatures(embedding, attention_pool_vv(tokens, pool))
        if kind == "qk":
            return ImageFeatures(embedding, attention_pool_qk(tokens, pool))
        local = value_projection(tokens, value=pool.v_proj, output=pool.c_proj)
        return ImageFeatures(embedding, local)

    def restore(self) -> None:
        """Nothing of it ever changes."""

    def record(self) -> dict[str, object]:
        """The heads of the pool."""
        return {"tower": "clip resnet", "heads": [int(self.module.attnpool.num_heads)]}


def find(module: nn.Module, name: str) -> ResNetTower | None:
    """The tower, if the module is one."""
    del name
    return ResNetTower(module) if isinstance(module, ModifiedResNet) else None
