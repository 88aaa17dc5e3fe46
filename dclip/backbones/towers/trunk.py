"""Image towers from timm, as open_clip wraps them: a *trunk*, and sometimes a head of its own.

Which family a trunk is of is read off what it has, so that an architecture of tomorrow with the
same parts needs nothing here:

* an attention pool with a latent query (SigLIP, PE-Core): the pool on each token alone;
* a class token (EVA, MobileCLIP-B): norm and head on every patch token;
* a mean, with the norm before it (FastViT, Swin) or after it (ConvNeXt, ViTamin).

The global embedding is always timm's own. Sizes other than the native one go through timm's
``set_input_size``, each from the weights the tower came with: resizing is not repeated, and
`restore` undoes it.

References:
    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv:2303.15343;
    Bolya et al., "Perception Encoder", arXiv:2504.13181; Sun et al., "EVA-CLIP", arXiv:2303.15389;
    Liu et al., "A ConvNet for the 2020s", CVPR 2022, arXiv:2201.03545;
    Chen et al., "ViTamin", CVPR 2024, arXiv:2404.02132; Vasu et al., "MobileCLIP", CVPR 2024,
    arXiv:2311.17049.
"""

import warnings
from typing import Any

from jaxtyping import Float
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from dclip.backbones import ImageFeatures
from dclip.backbones.blocks import PlainBlock, plain_blocks
from dclip.backbones.towers.heads import LocationHead
from dclip.backbones.vv_attention import BLOCK_PATHS, run_blocks

_PATHS = {
    "attention pool": "attention pool of each token alone, positions by timm, v1",
    "class token": "norm and head of each token, positions by timm, v1",
    "mean": "head of each location, positions by timm, v1",
    "normed mean": "norm and head of each location, positions by timm, v1",
}
_AFFINE_PATH = "norm by the mean's deviation, positions by timm, v1"


class TimmTower:
    """A ``TimmModel`` of open_clip as a `dclip.backbones.towers.ImageTower`.

    Args:
        module: The tower: a trunk of timm's, and a head.
        name: How messages call the model.

    Raises:
        ValueError: It pools in a way of which no local features are known.
    """

    has_mean_token = False

    def __init__(self, module: TimmModel, name: str) -> None:
        self.module = module
        self.trunk: Any = module.trunk
        trunk = self.trunk
        self.prefix = int(getattr(trunk, "num_prefix_tokens", 0))
        self.stride = int(trunk.feature_info[-1]["reduction"])
        self.native_size = _native_size(module)
        rows, columns = self.native_size
        self.native_grid = (rows // self.stride, columns // self.stride)
        self.family, self.head = _family(module, name)
        self.blocks = _blocks(trunk)
        self.paths = {"value": _PATHS[self.family]}
        if self.family == "normed mean" and self.head.is_linear:
            self.paths["affine"] = _AFFINE_PATH
        if self.blocks:
            self.paths |= BLOCK_PATHS
        self._size = self.native_size
        self._own = dict(trunk.named_parameters())  # by reference, so that none is copied

    def encode(
        self, images: Float[Tensor, "images 3 height width"], *, kind: str, grid: tuple[int, int]
    ) -> ImageFeatures:
        """The trunk once, timm's pool and head for the embedding, the family's way for the rest."""
        height, width = images.shape[-2:]
        self._take(height, width)
        changed: Tensor | None = None
        if kind in BLOCK_PATHS:
            features, changed = self._changed_blocks(images, kind, grid)
        else:
            features = self.trunk.forward_features(images)
        embedding: Tensor = self.module.head(self.trunk.forward_head(features))
        locations = self._locations(features if changed is None else changed)
        if self.family == "attention pool":
            locations = _pool_alone(self.trunk.attn_pool, locations)
        by = locations.mean(dim=1) if kind == "affine" else None
        return ImageFeatures(embedding, self.head(locations, by=by))

    def _locations(self, features: Tensor) -> Float[Tensor, "images locations channels"]:
        """What the trunk says of each location, row by row; no class token."""
        if features.ndim == 3:
            return features[:, self.prefix :]
        if getattr(self.trunk, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def _changed_blocks(
        self, images: Float[Tensor, "images 3 height width"], kind: str, grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "images tokens channels"], Float[Tensor, "images tokens channels"]]:
        """What leaves the blocks as they are, and with the last ones changed; both normed."""
        trunk = self.trunk
        tokens = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
        plain, changed = run_blocks(self.blocks, tokens, kind=kind, grid=grid, prefix=self.prefix)
        return trunk.norm(plain), trunk.norm(changed)

    def _take(self, height: int, width: int) -> None:
        """Make the trunk take images of a size, from the weights it came with."""
        if self._size == (height, width) or not hasattr(self.trunk, "set_input_size"):
            return
        self.restore()
        if (height, width) != self.native_size:
            self._resize(height, width)
            self._size = (height, width)

    def _resize(self, height: int, width: int) -> None:
        """The resize of timm, without what torch has to say of timm's code for it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.trunk.set_input_size((height, width))

    def restore(self) -> None:
        """Back to the native size; what was resampled is put back, not resampled again."""
        if self._size == self.native_size:
            return
        self._resize(*self.native_size)
        now = dict(self.trunk.named_parameters())
        for name, own in self._own.items():
            if now[name] is not own:
                room, _, leaf = name.rpartition(".")
                own.data = own.data.to(now[name].device, now[name].dtype)
                setattr(self.trunk.get_submodule(room), leaf, own)
        self._size = self.native_size

    def record(self) -> dict[str, object]:
        """Timm's name of the architecture, pool, prefix and heads."""
        trunk = self.trunk
        heads = [module.num_heads for module in trunk.modules() if hasattr(module, "num_heads")]
        return {
            "tower": f"timm {trunk.pretrained_cfg['architecture']}",
            "pool": [self.family, str(getattr(trunk, "global_pool", "avg"))],
            "prefix": self.prefix,
            "stride": self.stride,
            "grid": list(self.native_grid),
            "heads": [int(each) for each in heads],
        }


def _family(module: TimmModel, name: str) -> tuple[str, LocationHead]:
    """Which family a tower is of, and what follows its pool.

    Raises:
        ValueError: It pools in a way of which no local features are known.
    """
    trunk: Any = module.trunk
    if "pool" in dict(module.head.named_children()):
        raise ValueError(
            f"{name}: a pool of open_clip's behind a trunk of timm's is not supported; no released"
            " CLIP has one"
        )
    if hasattr(trunk, "blocks") and hasattr(trunk, "fc_norm"):  # a ViT, whatever its blocks
        pool = str(trunk.global_pool)
        after = None if isinstance(trunk.fc_norm, nn.Identity) else trunk.fc_norm
        head = _head(module, [trunk.head], norm=after)
        if getattr(trunk, "attn_pool", None) is not None:
            if trunk.attn_pool.pos_embed is None and trunk.attn_pool.latent_len == 1:
                return "attention pool", head
            pool = "an attention pool with positions or several queries"
        elif pool == "token":
            return "class token", head
        elif pool == "avg":
            return "mean" if after is None else "normed mean", head
    else:  # a map at the end
        pool = str(trunk.head.global_pool.pool_type)
        norm = getattr(trunk.head, "norm", None)
        after = None if norm is None or isinstance(norm, nn.Identity) else norm
        between = getattr(trunk.head, "pre_logits", nn.Identity())
        head = _head(module, [between, trunk.head.fc], norm=after)
        if pool == "avg":
            return "mean" if after is None else "normed mean", head
    raise ValueError(
        f"{name}: a tower of timm's that pools by {pool!r} is not supported, only one that pools by"
        " its class token, a mean or an attention pool"
    )


def _head(module: TimmModel, layers: list[nn.Module], *, norm: nn.Module | None) -> LocationHead:
    """Layers of the trunk behind its pool, then those of open_clip."""
    stack = nn.Sequential(*layers, *module.head.children()).eval()
    is_linear = all(
        isinstance(layer, nn.Linear | nn.Identity | nn.Dropout)
        for layer in stack.modules()
        if next(layer.children(), None) is None
    )
    return LocationHead(norm=norm, head=stack, is_linear=is_linear)


def _blocks(trunk: Any) -> list[PlainBlock]:
    """The blocks of a ViT of timm's where nothing but patches and positions enters them."""
    parts = ("patch_embed", "_pos_embed", "patch_drop", "norm_pre", "norm", "blocks")
    if not all(hasattr(trunk, part) for part in parts):
        return []
    if getattr(trunk, "rope", None) is not None or getattr(trunk, "rel_pos_bias", None) is not None:
        return []
    return plain_blocks(trunk.blocks)


def _pool_alone(
    pool: Any, tokens: Float[Tensor, "images tokens channels"]
) -> Float[Tensor, "images tokens channels"]:
    """The attention pool on each token as the only one: with one key the attention is 1.

    What is left of it is the value map, the output map and the feed-forward layers, which keep
    their residual path.
    """
    weight = pool.kv.weight.chunk(2)[1]
    bias = None if pool.kv.bias is None else pool.kv.bias.chunk(2)[1]
    values = pool.proj(nn.functional.linear(tokens, weight, bias))
    pooled: Tensor = values if pool.mlp is None else values + pool.mlp(pool.norm(values))
    return pooled


def _native_size(module: TimmModel) -> tuple[int, int]:
    """Rows and columns of pixels that a tower was built for.

    A trunk that takes any size does not know; open_clip's configuration does
    (``convnext_base_w_320``: 320, where timm's says 224 of every ``convnext_base``).
    """
    own = getattr(getattr(module.trunk, "patch_embed", None), "img_size", None)
    if own is None:
        own = module.image_size
    return int(own[0]), int(own[1])


def find(module: nn.Module, name: str) -> TimmTower | None:
    """The tower, if the module is one.

    Raises:
        ValueError: It is, and pools in a way of which no local features are known.
    """
    return TimmTower(module, name) if isinstance(module, TimmModel) else None
