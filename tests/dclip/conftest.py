"""Tiny CLIPs with the weights that authors' modules were run with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from dclip.backbones.clip import OpenCLIPBackbone

BLOCK_NAMES = {
    "attention.qkv.weight": "attn.in_proj_weight",
    "attention.qkv.bias": "attn.in_proj_bias",
    "attention.out": "attn.out_proj",
    "ln1": "ln_1",
    "ln2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
"""What open_clip calls the weights of a block that oracles call so."""
NAMES = {
    **BLOCK_NAMES,
    "vision.projection": "visual.proj",
    "vision.patch_embedding": "visual.conv1",
    "text.projection": "text_projection",
    "vision.": "visual.",
    "text.": "",
    "block": "transformer.resblocks.",
}
VISION = {"layers": 4, "width": 24, "head_width": 8, "image_size": 32, "patch_size": 8}


def _model(arrays: dict[str, Tensor]) -> open_clip.CLIP:
    """open_clip's model with the weights of an oracle file, in float64."""
    vision, text = (
        sum(name.startswith(f"weight.{tower}.") and name.endswith("ln1.bias") for name in arrays)
        for tower in ("vision", "text")
    )
    sizes, embed_dim = VISION, 20
    if vision:
        width, _, patch, _ = arrays["weight.vision.patch_embedding.weight"].shape
        side = patch * round((len(arrays["weight.vision.positional_embedding"]) - 1) ** 0.5)
        sizes = {**VISION, "layers": vision, "width": width, "patch_size": patch}
        sizes["image_size"] = side
        embed_dim = arrays["weight.vision.projection"].shape[1]
    model = open_clip.CLIP(
        embed_dim=embed_dim,
        vision_cfg=sizes,
        text_cfg={"context_length": 77, "width": 16, "heads": 2, "layers": max(1, text)},
        quick_gelu=True,
    ).double()
    state = model.state_dict()
    if "weight.log_logit_scale" in arrays:
        state["logit_scale"].copy_(arrays["weight.log_logit_scale"])
    for key, value in arrays.items():
        if not key.startswith(("weight.text.", "weight.vision.")):
            continue
        name = key.removeprefix("weight.")
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if name == "token_embedding":  # of the tokens that occur
            state["token_embedding.weight"][arrays["input.token_ids_of_openai_vocabulary"]] = value
        else:
            assert state[name].shape == value.shape, name
            state[name].copy_(value)
    return model


def _read_oracle(path: Path) -> tuple[OpenCLIPBackbone, dict[str, Tensor]]:
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    arrays = {k: v.double() if v.is_floating_point() else v.long() for k, v in arrays.items()}
    with torch.no_grad():
        model = _model(arrays)
    return OpenCLIPBackbone(model, open_clip.SimpleTokenizer(), name="of the oracle"), arrays


@pytest.fixture(scope="session")
def read_oracle() -> Callable[[Path], tuple[OpenCLIPBackbone, dict[str, Tensor]]]:
    """Function from the file of an oracle to a backbone of its weights, and its arrays."""
    return _read_oracle


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded numbers, with a README that says where they come from."""
    return Path(__file__).parents[1] / "golden"
