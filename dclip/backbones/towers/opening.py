"""Which family an image tower is of."""

from collections.abc import Callable

from torch import nn

from dclip.backbones.towers import ImageTower, resnet, trunk, vit

_FINDERS: tuple[Callable[[nn.Module, str], ImageTower | None], ...] = (
    resnet.find,
    vit.find,
    trunk.find,
)


def open_tower(module: nn.Module, name: str) -> ImageTower:
    """The way to local features through an image tower.

    Args:
        module: ``model.visual`` of a model of open_clip.
        name: How messages call the model.

    Raises:
        ValueError: No way is known; the message says why.
    """
    for find in _FINDERS:
        if (tower := find(module, name)) is not None:
            return tower
    raise ValueError(
        f"{name}: an image tower of type {type(module).__name__} is not supported; open_clip's own"
        " ResNet and ViT, and towers from timm, are"
    )
