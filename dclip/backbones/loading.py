"""From a `dclip.backbones.sources.Source` to a model with its weights, and its tokenizer."""

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from dclip.architectures import check_settings
from dclip.backbones import DEFAULT_RESOLUTION
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.released import find_file
from dclip.backbones.sources import Source, Triple, find_source
from dclip.backbones.tokenizers import StandInTokenizer, hugging_face_tokenizer
from dclip.backbones.weights import load_strictly, read_state_dict
from dclip.data.preparation import Interpolation, Preparation, Resize
from dclip.texts import EMBEDDED
from dclip.words import first_line

RANDOM_SEED = 0
"""Seed of the weights that ``pretrained="random"`` stands for."""

# What libraries raise that are built with settings of a wrong name, type or size.
_WRONG = (
    *(TypeError, ValueError, KeyError, AttributeError, AssertionError, IndexError),
    *(RuntimeError, ZeroDivisionError),
)


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
    side = DEFAULT_RESOLUTION if resolution is None else resolution
    check_settings(name, pretrained=pretrained, tag=tag, resolution=side)  # weights take long
    _check_channels(mean, std)
    source = find_source(name, pretrained=pretrained, tag=tag)
    # before the weights, which take long; with random ones nothing can be missing
    tokenizer = None if source.weights is None else _tokenizer(source)
    model = build(source)
    tokenizer = tokenizer or _stand_in(source, model)
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
    with torch.random.fork_rng(devices=[]), quiet():
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

    Raises:
        ValueError: The configuration builds none.
        OSError: That of a text tower of Hugging Face's cannot be had.
    """
    config = copy.deepcopy(config)
    text = config["text_cfg"]
    is_foreign = bool(text.get("hf_model_name"))
    if is_foreign:
        text |= {"hf_model_pretrained": False, "hf_model_name": _folder_of(text, label)}
    custom = config.pop("custom_text", False) or is_foreign
    builder = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in config and custom:
        builder = open_clip.CoCa
    try:
        model: nn.Module = builder(**config)
    except _WRONG as error:
        raise ValueError(
            f"{label}: its configuration builds no model ({first_line(error, 160)})"
        ) from error
    return model


def _folder_of(text: Mapping[str, Any], label: str) -> str:
    """The folder with the configuration of a text tower of Hugging Face's.

    Raises:
        OSError: It is of the Hub, not on this machine, and cannot be fetched.
    """
    name = str(text["hf_model_name"])
    if Path(name).is_dir():
        return name
    whose = f"the text tower of {label}, {name},"
    return str(find_file(name, "config.json", whose, then=" config.json").parent)


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
        ValueError: It is of Hugging Face's, and its files cannot be read.
        OSError: They are not here and cannot be fetched.
    """
    if source.tokenizer is None:
        return _clip_tokenizer()
    return hugging_face_tokenizer(source.tokenizer, source.config["text_cfg"], source.label)


def _stand_in(source: Source, model: Any) -> Any:
    """What reads texts for random weights: words mean nothing to them, and nothing is fetched."""
    if source.tokenizer is None:
        return _clip_tokenizer()
    text = source.config["text_cfg"]
    length = int(text.get("context_length", 77))
    if not text.get("hf_model_name"):
        return StandInTokenizer(length, int(text.get("vocab_size", 49408)), text)
    own = model.text.config
    ends = {"eos_id": own.eos_token_id}
    return StandInTokenizer(length, int(own.vocab_size), ends, pad=int(own.pad_token_id))


@functools.cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    """CLIP's byte-pair encoding; reading its vocabulary takes a moment."""
    return open_clip.SimpleTokenizer()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks that libraries make on building a model."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(before)
