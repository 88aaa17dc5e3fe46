"""Names to what has to be known before a model is built: architecture, weights, pixels, texts.

A name is an architecture of open_clip, ``hf-hub:org/name``, ``local-dir:PATH`` or one of the small
CLIPs that come with the package. Weights are a tag, a file, or random. Everything that can be wrong
is found here, before any memory is taken.
"""

import importlib
import importlib.resources
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

from dclip.architectures import no_such_tag, unknown_name
from dclip.backbones import UnsaidWarning
from dclip.backbones.released import find_file, find_weights
from dclip.data.preparation import SQUARE, Preparation, preparation
from dclip.texts import EMBEDDED, embedded_stem

HUB = "hf-hub:"
FOLDER = "local-dir:"

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
CONFIG_FILE = "open_clip_config.json"
_WEIGHT_NAMES = (  # in a folder; as open_clip looks for them
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)

_HF = "pip install 'dclip[hf]'"

Triple = tuple[float, float, float]


class Pixels(NamedTuple):
    """What images a model was trained on.

    Attributes:
        mean: Channel means, in [0, 1].
        std: Channel deviations.
        preparation: How they were resized.
    """

    mean: Triple = open_clip.OPENAI_DATASET_MEAN
    std: Triple = open_clip.OPENAI_DATASET_STD
    preparation: Preparation = SQUARE


class Source(NamedTuple):
    """A model that can be built.

    Attributes:
        label: How reports call it: ``"RN101/openai"``.
        config: open_clip's configuration of the architecture.
        weights: File of the weights; None for random ones.
        pixels: What images it was trained on.
        tokenizer: A folder or a name on the Hub, where the tokenizer is of Hugging Face's; None for
            CLIP's own.
    """

    label: str
    config: dict[str, Any]
    weights: Path | None
    pixels: Pixels
    tokenizer: str | None


def find_source(name: str, *, pretrained: str | None = None, tag: str | None = None) -> Source:
    """Where a model is to be had, and how its images and texts are prepared.

    Args:
        name: As `dclip.backbones.load_backbone` takes it, but for a factory.
        pretrained: A tag, a file, ``"random"``, or None for the usual weights.
        tag: Of open_clip's, which weights from a file are said to be.

    Raises:
        ValueError: If a name, tag or file is unknown or does not fit.
        OSError: If something has to be fetched and cannot be.
    """
    if name in EMBEDDED:
        _refuse_tag(tag, name)
        return _find_embedded(name, pretrained)
    if name.startswith((HUB, FOLDER)):
        _refuse_tag(tag, name)
        return _find_configured(name, pretrained)
    return _find_architecture(name, pretrained, tag)


def _refuse_tag(tag: str | None, name: str) -> None:
    if tag is not None:
        raise ValueError(
            f"tag={tag!r} says which released weights a file holds; {name} is known without it,"
            " leave it out"
        )


def _find_embedded(name: str, pretrained: str | None) -> Source:
    """A small CLIP that comes with the package, or its architecture with other weights."""
    folder = importlib.resources.files("dclip.world")
    stem = embedded_stem(name)
    config_file, weights_file = folder / f"{stem}.json", folder / f"{stem}.safetensors"
    if not config_file.is_file() or (pretrained is None and not weights_file.is_file()):
        raise ValueError(
            f"the weights of the {name} CLIP are missing from {folder}; train them with 'python -m"
            f" dclip.world.pretraining --model {name} --output {stem}.safetensors', or take a"
            " larger model such as RN101"
        )
    weights: Path | None = None
    if pretrained is None:
        weights = Path(str(weights_file))
    elif pretrained != "random":
        weights = Path(pretrained)
    label = name if pretrained is None else f"{name}/{Path(pretrained).name}"
    return Source(label, json.loads(config_file.read_text()), weights, Pixels(), None)


def _find_configured(name: str, pretrained: str | None) -> Source:
    """A model with a configuration beside its weights, in a folder or on the Hub."""
    if pretrained not in (None, "random"):
        raise ValueError(
            f"{name} has weights of its own, so that --pretrained {pretrained} has no place; leave"
            " it out, or say random"
        )
    weights: Path | None = None
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER)).expanduser()
        file, tokenizer = folder / CONFIG_FILE, str(folder)
        if not file.is_file():
            raise ValueError(f"{name}: there is no {CONFIG_FILE} in {folder}")
        if pretrained is None:
            found = weights_in(folder)
            if not found:
                raise ValueError(f"{name}: none of {', '.join(_WEIGHT_NAMES)} is in {folder}")
            weights = found[0]
    else:
        repository = name.removeprefix(HUB)
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise ValueError(f"{name}: a model on the Hub is called {HUB}organisation/name")
        file, tokenizer = find_file(repository, CONFIG_FILE, name), ""
    config, pixels = read_configured(file)
    own = tokenizer_of(config)
    _require_reader(config, name, is_random=pretrained == "random")
    if name.startswith(HUB) and pretrained is None:
        weights = find_weights({"hf_hub": f"{repository}/"}, name, architecture=name)
    return Source(
        label=name if pretrained is None else f"{name}/random",
        config=config,
        weights=weights,
        pixels=pixels,
        tokenizer=(tokenizer or own) if own else None,
    )


def _find_architecture(name: str, pretrained: str | None, tag: str | None) -> Source:
    """An architecture of open_clip with released weights, random ones, or those of a file."""
    architecture = name.replace("/", "-")
    config = architecture_config(name)
    _require_reader(config, architecture, is_random=pretrained == "random")
    tags = tags_of(architecture)
    pretrained = _usual_tag(architecture, tags) if pretrained is None else pretrained
    pixels = Pixels()
    weights: Path | None = None
    label = f"{architecture}/{Path(pretrained).name}"
    if pretrained in tags or pretrained == "random":
        _refuse_tag(tag, f"{architecture}/{pretrained}")
    if pretrained in tags:
        released = tags[pretrained]
        config["quick_gelu"] = bool(released.get("quick_gelu", False))
        pixels = pixels_of_tag(architecture, released)
        own = f"{architecture.removesuffix('-quickgelu')}{'-quickgelu' * config['quick_gelu']}"
        weights = find_weights(released, label, architecture=own, tag=pretrained)
    elif pretrained == "random":
        pixels = _usual_pixels(architecture, tags)
    else:
        weights = Path(pretrained)
        if weights.suffix not in _WEIGHT_SUFFIXES and not weights.is_file():
            raise ValueError(no_such_tag(architecture, pretrained, tags))
        pixels, config["quick_gelu"] = _of_a_file(architecture, config, weights, tags, tag)
    return Source(label, config, weights, pixels, tokenizer_of(config))


def architecture_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture, whose name may have ``/`` for ``-``.

    Raises:
        ValueError: There is none of that name; the message names similar ones.
    """
    architecture = name.replace("/", "-")
    config: dict[str, Any] | None = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(unknown_name(name, open_clip.list_models()))
    return config


def tags_of(architecture: str) -> dict[str, dict[str, Any]]:
    """The released weights of an architecture, by tag, as open_clip lists them."""
    return {
        tag: open_clip.get_pretrained_cfg(architecture, tag)
        for tag in open_clip.list_pretrained_tags_by_model(architecture)
    }


def pixels_of_tag(architecture: str, released: Mapping[str, Any]) -> Pixels:
    """What images released weights were trained on.

    CLIP's own ResNets and ViTs keep the paper's square, whatever their tag says: every published
    number of DCLIP, and all features so far, are of that.
    """
    pixels = _pixels_of(released, architecture)
    return pixels._replace(preparation=SQUARE) if is_clips_own(architecture) else pixels


def is_clips_own(architecture: str) -> bool:
    """Whether an architecture is CLIP's: its ResNet or class-token ViT, and its own tokenizer."""
    config = open_clip.get_model_config(architecture) or {}
    image, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    return not (
        image.get("timm_model_name")
        or image.get("attentional_pool")
        or image.get("pool_type", "tok") != "tok"
        or text.get("hf_tokenizer_name")
        or config.get("multimodal_cfg")
    )


def _usual_tag(architecture: str, tags: Mapping[str, object]) -> str:
    """The tag meant where none is given: OpenAI's, or the only one.

    Raises:
        ValueError: There are several others, or none.
    """
    if "openai" in tags:
        return "openai"
    if len(tags) == 1:
        return next(iter(tags))
    known = ", ".join(tags) or "none; give a file, or random"
    raise ValueError(
        f"{architecture} has no weights by the tag openai; say which by --pretrained. Released are:"
        f" {known}"
    )


def _usual_pixels(architecture: str, tags: Mapping[str, Mapping[str, Any]]) -> Pixels:
    """Those of released weights, where all agree; CLIP's else."""
    every = {pixels_of_tag(architecture, released) for released in tags.values()}
    return every.pop() if len(every) == 1 else Pixels()


def _of_a_file(
    architecture: str,
    config: Mapping[str, Any],
    weights: Path,
    tags: Mapping[str, Mapping[str, Any]],
    tag: str | None,
) -> tuple[Pixels, bool]:
    """Pixels, and whether QuickGELU is meant, of weights that do not say it themselves.

    A tag says it, or a configuration beside the file, or all released weights agree.

    Raises:
        ValueError: The tag is not one of the architecture.

    Warns:
        UnsaidWarning: Released weights of the architecture differ in it.
    """
    named = bool(config.get("quick_gelu", False))
    if tag is not None:
        if tag not in tags:
            raise ValueError(no_such_tag(architecture, tag, tags))
        released = tags[tag]
        return pixels_of_tag(architecture, released), bool(released.get("quick_gelu", False))
    beside = weights.with_name(CONFIG_FILE)
    if beside.is_file():
        content = _read_config(beside)
        pixels = _pixels_of(content.get("preprocess_cfg", {}), str(beside))
        if is_clips_own(architecture):
            pixels = pixels._replace(preparation=SQUARE)
        return pixels, bool(content["model_cfg"].get("quick_gelu", named))
    every = {tag: pixels_of_tag(architecture, released) for tag, released in tags.items()}
    gelus = {bool(released.get("quick_gelu", False)) for released in tags.values()}
    unsaid = []
    quick = True in gelus if len(gelus) == 1 else named
    if len(gelus) == 2 and not named:
        unsaid.append(f"GELU is taken, not QuickGELU (OpenAI's: '{architecture}-quickgelu')")
    pixels = _usual_pixels(architecture, tags)
    if len(set(every.values())) > 1:
        unsaid.append("images are normalised as OpenAI's, by mean 0.481 0.458 0.408")
    if unsaid:
        warnings.warn(
            f"{weights.name} does not say which weights of {architecture} it holds, and released"
            f" ones differ: {'; '.join(unsaid)}. Say it by --tag, one of {', '.join(tags)}",
            UnsaidWarning,
            stacklevel=5,
        )
    return pixels, quick


def weights_in(folder: Path) -> list[Path]:
    """Files of weights in a folder of a model, the one that is taken first."""
    return [folder / each for each in _WEIGHT_NAMES if (folder / each).is_file()]


def read_configured(file: Path) -> tuple[dict[str, Any], Pixels]:
    """Architecture and pixels of an ``open_clip_config.json``.

    Raises:
        ValueError: If it is none.
    """
    content = _read_config(file)
    return content["model_cfg"], _pixels_of(content.get("preprocess_cfg", {}), str(file))


def _read_config(file: Path) -> dict[str, Any]:
    """An ``open_clip_config.json``.

    Raises:
        ValueError: If it is none.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a configuration ({error})") from error
    parts = ("embed_dim", "vision_cfg", "text_cfg")
    model = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(part in model for part in parts):
        raise ValueError(
            f"{file} is no configuration of open_clip: it needs model_cfg with {', '.join(parts)}"
        )
    if model["vision_cfg"].get("timm_model_pretrained"):
        model["vision_cfg"]["timm_model_pretrained"] = False
    told: dict[str, Any] = content
    return told


def _pixels_of(told: Mapping[str, Any], where: str) -> Pixels:
    """Pixels as a tag or a ``preprocess_cfg`` tells them; what is not told is CLIP's."""
    usual = Pixels()
    mean, std = (tuple(told.get(key) or getattr(usual, key)) for key in ("mean", "std"))
    numbers = [*mean, *std]
    if (
        len(mean) != 3
        or len(std) != 3
        or not all(isinstance(each, int | float) for each in numbers)
        or min(std) <= 0
    ):
        raise ValueError(f"{where}: mean {mean} and std {std} are not three numbers, std above 0")
    try:
        form = preparation(
            str(told.get("resize_mode", "shortest")), str(told.get("interpolation", "bicubic"))
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Pixels(mean, std, form)


def _require_reader(config: Mapping[str, Any], label: str, *, is_random: bool) -> None:
    """Refuse a model whose texts need a library that is not installed.

    Raises:
        ValueError: It is not; the message has the command that installs it.
    """
    is_foreign = bool(config["text_cfg"].get("hf_model_name"))
    if tokenizer_of(config) is None or (is_random and not is_foreign):
        return
    try:
        importlib.import_module("transformers")  # seconds, and few models need it
    except ImportError as error:
        raise ValueError(
            f"{label} reads texts by Hugging Face's transformers, which are not installed: {_HF}"
        ) from error


def tokenizer_of(config: Mapping[str, Any]) -> str | None:
    """Hugging Face's name of the tokenizer; None for CLIP's own."""
    text = config["text_cfg"]
    name: str | None = text.get("hf_tokenizer_name") or text.get("hf_model_name") or None
    return name
