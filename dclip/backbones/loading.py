"""From a `dclip.backbones.sources.Source` to a model with its weights, and its tokenizer."""

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from dclip.backbones import DEFAULT_RESOLUTION
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.sources import Source, Triple, find_source
from dclip.backbones.tokenizers import StandInTokenizer, hugging_face_tokenizer
from dclip.backbones.weights import load_strictly, read_state_dict
from dclip.data.preparation import Interpolation, Preparation, Resize
from dclip.texts import EMBEDDED

RANDOM_SEED = 0
"""Seed of the weights that ``pretrained="random"`` stands for."""


def load_model(
    name: str,
    *,
    pretrained: str | None = None,
    tag: str | None = None,
    resolution: int | None = None,
    include_global_token: bool | None = None,
    resize: Resize | None = None,
    interpolation: Interpolation | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> OpenCLIPBackbone:
    """A frozen model of open_clip, on the CPU; arguments as of `dclip.backbones.load_backbone`.

    Raises:
        ValueError: If a name, tag or file is unknown or does not fit, or a part is not installed.
        OSError: If something has to be fetched and cannot be.
    """
    _check_channels(mean, std)
    source = find_source(name, pretrained=pretrained, tag=tag)
    tokenizer = _tokenizer(source)  # before the weights, which take long
    model = build(source)
    usual = None if name in EMBEDDED else DEFAULT_RESOLUTION
    own = source.pixels.preparation
    preparation = Preparation(resize or own.resize, interpolation or own.interpolation)
    return OpenCLIPBackbone(
        model,
        tokenizer,
        name=source.label,
        resolution=usual if resolution is None else resolution,
        include_global_token=include_global_token,
        mean=source.pixels.mean if mean is None else mean,
        std=source.pixels.std if std is None else std,
        preparation=preparation,
    )


def _check_channels(mean: Triple | None, std: Triple | None) -> None:
    """Refuse means and deviations that no values from 0 to 1 have."""
    for name, own in (("mean", mean), ("std", std)):
        if own is None:
            continue
        if len(own) != 3 or not all(0 <= each <= 1 and (name == "mean" or each) for each in own):
            wanted = "from 0 to 1" if name == "mean" else "above 0, up to 1"
            raise ValueError(f"{name}={own!r} has to be three numbers, {wanted}")


def build(source: Source) -> nn.Module:
    """The model, with the weights of the source's file or random ones from `RANDOM_SEED`.

    Raises:
        ValueError: If the weights do not fit the architecture, or a library is not installed.
        OSError: If the text tower is of Hugging Face's and its configuration cannot be had.
    """
    state_dict = None if source.weights is None else read_state_dict(source.weights)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(RANDOM_SEED)
        model = construct(source.config, source.label)
    if state_dict is not None:
        fitted = fit_names(model, state_dict)
        load_strictly(model, fitted, source=str(source.weights))
        return model
    visual: Any = model.visual
    if hasattr(visual, "attnpool"):
        for module in visual.modules():
            # A convolution after a ReLU starts out dividing the variance by six. With the running
            # variance at its initial one, nothing of the image would be left after the seven of a
            # random ResNet (three of the stem, four shortcuts; the other branches start at zero).
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.fill_(1 / 6)
    return model


def construct(config: dict[str, Any], label: str) -> nn.Module:
    """A model of open_clip from its configuration, with the weights it starts with.

    Nothing is fetched but the configuration of a text tower of Hugging Face's.

    Args:
        config: As open_clip's files have it; not changed.
        label: How messages call the model.
    """
    config = copy.deepcopy(config)
    text = config["text_cfg"]
    is_foreign = bool(text.get("hf_model_name"))
    if is_foreign:
        text["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or is_foreign
    if "multimodal_cfg" in config and custom:
        model: nn.Module = open_clip.CoCa(**config)
        return model
    try:
        model = open_clip.CustomTextCLIP(**config) if custom else open_clip.CLIP(**config)
    except OSError as error:  # transformers' own message is a page
        raise OSError(
            f"the text tower of {label} is {text.get('hf_model_name')} of Hugging Face, whose"
            f" configuration is not on this machine ({_first_line(error)}). Where there is a"
            f" network, fetch it: hf download {text.get('hf_model_name')} config.json"
        ) from error
    return model


def fit_names(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that a model has for them.

    Known are what open_clip knows: MobileCLIP's own files, text towers kept among the model's own
    parts, a scale of one number or of none, and a buffer that older text towers kept.
    """
    state_dict = dict(convert_state_dict(model, dict(state_dict)))
    if "positional_embedding" in state_dict and not hasattr(model, "positional_embedding"):
        state_dict = convert_to_custom_text_state_dict(state_dict)
    own = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in state_dict and name in own and state_dict[name].numel() == own[name].numel():
            state_dict[name] = state_dict[name].reshape(own[name].shape)
    state_dict.pop("text.transformer.embeddings.position_ids", None)
    return state_dict


def _tokenizer(source: Source) -> Any:
    """The tokenizer of a model.

    Raises:
        OSError: It is of Hugging Face's, and its files cannot be had.
    """
    if source.tokenizer is None:
        return _clip_tokenizer()
    text = source.config["text_cfg"]
    if source.weights is None:  # random: words mean nothing, and nothing is fetched
        length = int(text.get("context_length", 77))
        return StandInTokenizer(length, int(text.get("vocab_size", 49408)), text)
    return hugging_face_tokenizer(source.tokenizer, text, source.label)


@functools.cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    """CLIP's byte-pair encoding; reading its vocabulary takes a moment."""
    return open_clip.SimpleTokenizer()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks that libraries make on building a model."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(before)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].strip()[:160] or type(error).__name__
