"""Small CLIPs of open_clip's own classes, every weight random, so that nothing hides in a zero."""

import copy
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {
            "layers": [1, 2, 1, 1],
            "width": 8,
            "head_width": 64,
            "image_size": 96,
            "patch_size": None,
        },
        "text_cfg": TEXT,
    },
    "vit": {
        "embed_dim": 24,
        "vision_cfg": {
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "image_size": 32,
            "patch_size": 8,
        },
        "text_cfg": TEXT,
    },
}


def _build(kind: str, *, text: dict[str, Any] | None = None, **changes: Any) -> open_clip.CLIP:
    """A small model; ``changes`` go to the image tower's configuration, ``text`` to the text's."""
    config = copy.deepcopy(CONFIGS[kind])
    config["vision_cfg"].update(changes)
    config["text_cfg"].update(text or {})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = open_clip.CLIP(**config, quick_gelu=True).eval()
        for name, weight in model.state_dict().items():
            if name.endswith("running_var"):
                weight.uniform_(0.2, 0.5)
            elif weight.is_floating_point() and weight.ndim:
                weight.add_(0.1 * torch.randn(weight.shape))
    return model


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def _linear(distance: float) -> float:
    """The triangle of linear interpolation."""
    return max(0.0, 1 - abs(distance))


KERNELS = {"bicubic": _cubic, "bilinear": _linear}


def _interpolation_matrix(new: int, old: int, mode: str) -> Tensor:
    """Row i: weights of the old samples for new sample i; centres aligned, border repeated."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(-3, old + 3):
            matrix[i, min(max(j, 0), old - 1)] += KERNELS[mode](centre - j)
    return matrix


def _resize_by_matrices(
    embedding: Tensor,
    native_grid: tuple[int, int],
    grid: tuple[int, int],
    mode: str = "bicubic",
) -> Tensor:
    """Separable convolution with the kernel of ``mode``, written as two matrix products."""
    image = embedding[1:].reshape(*native_grid, -1)
    down, across = (
        _interpolation_matrix(new, old, mode) for new, old in zip(grid, native_grid, strict=True)
    )
    return torch.cat(
        [embedding[:1], torch.einsum("ah,bw,hwd->abd", down, across, image).flatten(0, 1)]
    )


@pytest.fixture(scope="session")
def configs() -> dict[str, dict[str, Any]]:
    """Configurations of the small models, as open_clip's model files hold them."""
    return CONFIGS


@pytest.fixture(scope="session")
def build_model() -> Callable[..., open_clip.CLIP]:
    """Function from ``"resnet"`` or ``"vit"`` and changes of the image tower to a small model."""
    return _build


@pytest.fixture(scope="session")
def resize_by_matrices() -> Callable[..., Tensor]:
    """Oracle for the positional embedding: from embedding, native grid, grid and mode."""
    return _resize_by_matrices


@pytest.fixture(scope="session")
def tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()
