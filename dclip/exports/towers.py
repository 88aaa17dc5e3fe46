"""The frozen image tower as a module: normalised pixels to global embedding and local features."""

import copy

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dclip.backbones import Backbone, ImageFeatures
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.towers.opening import open_tower


class Encoder(nn.Module):
    """A tower of open_clip, its weights copied; BatchNorm of CLIP's ResNet is in its convolutions.

    Args:
        backbone: Stays as it is.
        kind: Of the local features.
    """

    def __init__(self, backbone: OpenCLIPBackbone, kind: str) -> None:
        super().__init__()
        backbone.tower.restore()
        self.visual = copy.deepcopy(backbone.model.visual).cpu().float().eval()
        if isinstance(self.visual, ModifiedResNet):
            fold_batch_norm(self.visual)
        self.tower = open_tower(self.visual, backbone.name)
        self.kind, self.side = kind, backbone.resolution
        self.grid = backbone.grid(self.side, self.side)
        self.keeps_all = backbone.include_global_token or not self.tower.has_mean_token
        with torch.no_grad():  # some towers take another size than their own at its first image
            self(torch.zeros(1, 3, self.side, self.side))

    def forward(self, images: Float[Tensor, "images 3 height width"]) -> ImageFeatures:
        """Features of normalised images."""
        embedding, local = self.tower.encode(images, kind=self.kind, grid=self.grid)
        return ImageFeatures(embedding, local if self.keeps_all else local[:, 1:])


class OwnEncoder(nn.Module):
    """A backbone of somebody's own, as it is.

    Args:
        backbone: On the CPU.
        kind: Of the local features.
    """

    def __init__(self, backbone: Backbone, kind: str) -> None:
        super().__init__()
        self.backbone, self.kind = backbone, kind

    def forward(self, images: Float[Tensor, "images 3 height width"]) -> ImageFeatures:
        """Features of normalised images."""
        embedding, local = self.backbone.encode_images(images, kind=self.kind)
        return ImageFeatures(embedding.float(), local.float())


def encoder_of(backbone: Backbone, kind: str) -> Encoder | OwnEncoder:
    """The image side of a frozen CLIP.

    Args:
        backbone: Any.
        kind: Of the local features.
    """
    if isinstance(backbone, OpenCLIPBackbone):
        return Encoder(backbone, kind)
    return OwnEncoder(backbone, kind)


def fold_batch_norm(tower: ModifiedResNet) -> None:
    """Take every BatchNorm into the convolution before it, in place.

    In evaluation mode it is a scale and a shift per channel, which the weights and a bias hold.
    """
    for room in tower.modules():
        parts = dict(room.named_children())
        pairs = [(name, name.replace("conv", "bn")) for name in parts if name.startswith("conv")]
        if isinstance(room, nn.Sequential):  # a shortcut: pool, convolution, norm
            pairs += [
                (name, following) for name, following in zip(parts, [*parts][1:], strict=False)
            ]
        for name, following in pairs:
            conv, norm = parts[name], parts.get(following)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(room, name, fuse_conv_bn_eval(conv, norm))
                setattr(room, following, nn.Identity())
