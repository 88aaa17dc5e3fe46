# ruff: noqa: C408 - settings of networks are written as arguments
"""Every architecture of open_clip at a size that a test can run: same code, few channels."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import open_clip
import timm
import torch
from timm.models.vitamin import VitCfg, VitConvCfg
from torch import nn

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.loading import construct
from dclip.backbones.tokenizers import StandInTokenizer

WIDTH = 32
FOREIGN_TEXTS = tuple(
    name
    for name in open_clip.list_models()
    if open_clip.get_model_config(name)["text_cfg"].get("hf_model_name")
)
"""Those with a text tower of Hugging Face's, whose configuration lies on the Hub: small ones have
CLIP's in its place."""


_VITAMIN = VitCfg(
    embed_dim=(8, 16, WIDTH),
    depths=(1, 1, 0),
    stem_width=8,
    conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
    head_type="1d",
)


def _trunk_changes(name: str) -> dict[str, Any]:
    """What makes a trunk of timm's small, by the module that holds its code."""
    room = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    patch = next((int(part[5:]) for part in name.split("_") if part[:5] == "patch"), 16)
    small: dict[str, dict[str, Any]] = {
        "vision_transformer": dict(
            embed_dim=WIDTH, depth=2, num_heads=2, img_size=_like_native(name, patch)
        ),
        "vision_transformer_relpos": dict(
            embed_dim=WIDTH, depth=2, num_heads=2, img_size=3 * patch
        ),
        "eva": dict(embed_dim=WIDTH, depth=2, num_heads=2, img_size=3 * patch),
        "vision_transformer_hybrid": dict(depth=1),  # its stem gives 768 channels
        "vitamin": dict(depth=1, embed_dim=WIDTH, num_heads=2, embed_cfg=_VITAMIN, img_size=48),
        "convnext": dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
        "swin_transformer": dict(depths=(1, 1, 2, 1), embed_dim=16, num_heads=(1, 2, 4, 4)),
    }
    if room == "fastvit":
        stages = 5 if name.endswith(("mci3", "mci4")) else 4
        return dict(layers=(1,) * stages, embed_dims=(32, 32, 64, 64, 64)[:stages])
    return small[room]


def _like_native(name: str, patch: int) -> int:
    """Three patches; and for sizes that are no multiple of the patch, as much left over."""
    native = int(timm.get_pretrained_cfg(name).input_size[-1])
    return 3 * patch + native % patch


@contextlib.contextmanager
def _small_trunks() -> Iterator[None]:
    own = timm.create_model

    def create(name: str, **options: Any) -> nn.Module:
        return own(name, **(options | _trunk_changes(name)))

    timm.create_model = create
    try:
        yield
    finally:
        timm.create_model = own


def small_config(architecture: str) -> dict[str, Any]:
    """The configuration of an architecture with few channels, layers and pixels."""
    config = copy.deepcopy(open_clip.get_model_config(architecture))
    assert config is not None
    if architecture in FOREIGN_TEXTS:  # that tower lies on the Hub; the image tower is what counts
        is_coca = "multimodal_cfg" in config
        config["text_cfg"] = {"embed_cls": is_coca, "output_tokens": is_coca}
    image, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = WIDTH
    text |= {"width": WIDTH if text.get("proj_type") == "none" else 16, "heads": 2, "layers": 1}
    if text.get("hf_tokenizer_name"):
        text["vocab_size"] = 500
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    if image.get("timm_model_name"):
        return config
    if isinstance(image["layers"], list):
        return config | {"vision_cfg": image | {"layers": [1, 1, 1, 1], "width": 8}}
    patch = image["patch_size"]
    image |= {"layers": 2, "width": WIDTH, "head_width": 16, "image_size": 3 * patch}
    return config


def small_backbone(architecture: str, *, dtype: torch.dtype = torch.float64) -> OpenCLIPBackbone:
    """A small model of an architecture, every weight random, so that nothing hides in a zero."""
    config = small_config(architecture)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        with _small_trunks():
            model = construct(config, architecture).eval()
        for name, weight in model.state_dict().items():
            if name.endswith("running_var"):
                weight.uniform_(0.2, 0.5)
            elif weight.is_floating_point() and weight.ndim:
                weight.add_(0.1 * torch.randn(weight.shape))
    text = config["text_cfg"]
    tokenizer: Any = open_clip.SimpleTokenizer()
    if text.get("hf_tokenizer_name"):
        tokenizer = StandInTokenizer(text.get("context_length", 77), text["vocab_size"], text)
    return OpenCLIPBackbone(model.to(dtype), tokenizer, name=architecture)
