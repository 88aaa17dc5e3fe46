"""A backbone of random linear maps: a user's own model in the tests, and quick to load."""

import hashlib
import time
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import ImageFeatures


class ToyBackbone:
    """Mean colour and contrast of each cell, through one random matrix."""

    name = "toy"
    embed_dim = 16
    stride = 32
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    include_global_token = True
    kinds = ("value", "vv")

    def __init__(self, resolution: int | None, seed: int = 0) -> None:
        self.resolution = resolution or 96
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(6, self.embed_dim, generator=generator)

    def encode_images(self, images: Tensor, *, kind: str = "value") -> ImageFeatures:
        if kind not in self.kinds:
            raise ValueError(f"unknown kind {kind!r}; {self.name} offers {', '.join(self.kinds)}")
        mean = F.avg_pool2d(images, self.stride)
        square = F.avg_pool2d(images.square(), self.stride)
        local = torch.cat([mean, square], 1).flatten(2).transpose(1, 2) @ self.weight
        token = local.mean(1, keepdim=True)
        tokens = torch.cat([token, local], 1)
        if kind == "vv":
            tokens = (tokens + token) / 2
        return ImageFeatures(token[:, 0], tokens)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            rows.append(torch.randn(self.embed_dim, generator=torch.Generator().manual_seed(seed)))
        return 1.0 + torch.stack(rows)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.stride, width // self.stride

    def feature_path(self, kind: str) -> str:
        return f"toy {kind}"

    def fingerprint(self) -> str:
        return hashlib.sha256(self.weight.numpy().tobytes()).hexdigest()

    def to(self, device: torch.device | str) -> Self:
        self.weight = self.weight.to(device)
        return self


def make(*, resolution: int | None, device: torch.device | str) -> ToyBackbone:
    return ToyBackbone(resolution).to(device)


def other(*, resolution: int | None, device: torch.device | str) -> ToyBackbone:
    return ToyBackbone(resolution, seed=1).to(device)


class SlowBackbone(ToyBackbone):
    """The same features, a second a batch."""

    def encode_images(self, images: Tensor, *, kind: str = "value") -> ImageFeatures:
        time.sleep(1.0)
        return super().encode_images(images, kind=kind)


def slow(*, resolution: int | None, device: torch.device | str) -> ToyBackbone:
    return SlowBackbone(resolution).to(device)
