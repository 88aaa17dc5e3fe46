"""A small CLIP of open_clip's, every weight random, as wide in its texts as in its joint space."""

import open_clip
import torch

from dclip.backbones.clip import OpenCLIPBackbone


def make(*, resolution: int | None, device: torch.device | str) -> OpenCLIPBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=16,
            vision_cfg={
                "layers": 1, "width": 24, "head_width": 12, "image_size": 64, "patch_size": 16
            },
            text_cfg={"context_length": 32, "width": 16, "heads": 2, "layers": 1},
            quick_gelu=True,
        )  # fmt: skip
    backbone = OpenCLIPBackbone(
        model, open_clip.SimpleTokenizer(), name="toy clip", resolution=resolution
    )
    return backbone.to(device)
