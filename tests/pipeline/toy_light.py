"""A backbone that knows light from dark, one for each way to make squares."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import ImageFeatures
from dclip.data.preparation import Preparation


class LightBackbone:
    """The first number of a location is how light it is, the second how dark."""

    name = "light"
    embed_dim = 2
    stride = 2
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    include_global_token = False
    kinds = ("value",)

    def __init__(self, resolution: int | None, preparation: Preparation) -> None:
        self.resolution = resolution or 60
        self.preparation = preparation

    def encode_images(self, images: Tensor, *, kind: str = "value") -> ImageFeatures:
        assert kind == "value"
        light = F.avg_pool2d(images.mean(1, keepdim=True), self.stride).flatten(2).transpose(1, 2)
        local = torch.cat([light, 1 - light], 2)
        return ImageFeatures(local.mean(1), local)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float("light" in text), float("dark" in text)] for text in texts])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.stride, width // self.stride

    def feature_path(self, kind: str) -> str:
        return f"light and dark, {kind}"

    def fingerprint(self) -> str:
        return "light"

    def to(self, device: torch.device | str) -> Self:
        self.device = device
        return self


def squash(*, resolution: int | None, device: torch.device | str) -> LightBackbone:
    return LightBackbone(resolution, Preparation("squash", "bicubic"))


def shortest(*, resolution: int | None, device: torch.device | str) -> LightBackbone:
    return LightBackbone(resolution, Preparation("shortest", "bicubic"))


def longest(*, resolution: int | None, device: torch.device | str) -> LightBackbone:
    return LightBackbone(resolution, Preparation("longest", "bicubic"))
