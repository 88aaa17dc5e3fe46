"""What an architecture is, found by building it without memory, on torch's meta device."""

import copy
import functools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch

from dclip.architectures import Architecture, Weights, in_cache
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.loading import construct, quiet
from dclip.backbones.released import files_of
from dclip.backbones.sources import (
    CONFIG_FILE,
    FOLDER,
    HUB,
    Pixels,
    architecture_config,
    find_source,
    pixels_of_tag,
    read_configured,
    tags_of,
    tokenizer_of,
    weights_in,
)
from dclip.backbones.text_tower import text_pool_type
from dclip.backbones.tokenizers import StandInTokenizer
from dclip.data.preparation import Preparation
from dclip.texts import EMBEDDED

_LICENCE = re.compile(r"^license: *(\S+)", re.M)
_LICENCE_NAME = re.compile(r"^license_name: *(\S+)", re.M)


def every_architecture() -> Iterator[Architecture]:
    """All architectures of the open_clip that is installed, with their released weights."""
    for name in open_clip.list_models():
        yield describe(name)


def describe(name: str) -> Architecture:
    """One model by any name of open_clip's, in a folder, on the Hub, or of the small ones.

    Nothing is fetched.

    Args:
        name: As `dclip.backbones.load_backbone` takes it, but for a factory.

    Raises:
        ValueError: There is no such model, or it cannot be built.
        OSError: Its configuration is on the Hub and not on this machine.
    """
    if name in EMBEDDED:
        source = find_source(name)
        files = (str(source.weights),)
        own = _weights("", files, source.pixels, quick_gelu=_is_quick(source.config))
        return _architecture(name, source.config, None, (own,))
    if name.startswith((HUB, FOLDER)):
        return _describe_configured(name)
    config = architecture_config(name)
    name = name.replace("/", "-")
    return _architecture(name, config, tokenizer_of(config), released_weights(name))


def released_weights(name: str) -> tuple[Weights, ...]:
    """What open_clip's table, and timm's, say of the released weights of an architecture.

    Args:
        name: Of the architecture.
    """
    return tuple(_released(name, tag, told) for tag, told in tags_of(name).items())


def describe_file(name: str, file: str, tag: str | None) -> Weights:
    """Weights of an architecture in a file, and what images they are given.

    Args:
        name: Of the architecture.
        file: That holds them.
        tag: Which released ones they are said to be.

    Raises:
        ValueError: The tag is not one of the architecture.
    """
    source = find_source(name, pretrained=file, tag=tag)
    return _weights(file, (file,), source.pixels, quick_gelu=_is_quick(source.config))


def _describe_configured(name: str) -> Architecture:
    """A model with a configuration beside its weights, if both are on this machine."""
    repository, readme = "", None
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER)).expanduser()
        file = folder / CONFIG_FILE
        if not file.is_file():
            raise ValueError(f"{name}: there is no {CONFIG_FILE} in {folder}")
        files = tuple(str(each) for each in weights_in(folder))
        readme = folder / "README.md"
    else:
        repository = name.removeprefix(HUB)
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise ValueError(f"{name}: a model on the Hub is called {HUB}organisation/name")
        found = in_cache(repository, [CONFIG_FILE])
        if found is None:
            raise OSError(
                f"{name}: its {CONFIG_FILE} is not on this machine, and nothing is fetched here;"
                f" fetch it: hf download {repository} {CONFIG_FILE}"
            )
        file, files = found, files_of({"hf_hub": f"{repository}/"})
        readme = in_cache(repository, ["README.md"])
    config, pixels = read_configured(file)
    own = _weights("", files, pixels, quick_gelu=_is_quick(config))
    own = own._replace(repository=repository, licence=licence_in(readme))
    return _architecture(name, config, tokenizer_of(config), (own,))


def _architecture(
    name: str, config: Mapping[str, Any], tokenizer: str | None, weights: tuple[Weights, ...]
) -> Architecture:
    """Facts of a configuration. QuickGELU changes none, and many differ in nothing else."""
    plain = {key: value for key, value in config.items() if key != "quick_gelu"}
    try:
        facts = _facts(json.dumps(plain), tokenizer, name)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}: its configuration cannot be read ({error})") from error
    return facts._replace(name=name, weights=weights)


@functools.lru_cache(maxsize=256)
def _facts(plain: str, tokenizer: str | None, label: str) -> Architecture:
    """Those that building tells; the text tower of Hugging Face's is told by its configuration."""
    config: dict[str, Any] = json.loads(plain)
    text = copy.deepcopy(config["text_cfg"])
    text_tower: str | None = text.get("hf_model_name") or None
    length = int(text.get("context_length", 77))
    if text_tower:  # its own configuration lies on the Hub; this one stands in for it
        config["text_cfg"] = {"width": 8, "heads": 1, "layers": 1, "context_length": length}
        config["custom_text"] = True
    reader: Any = _clip_tokenizer()
    if tokenizer is not None:
        reader = StandInTokenizer(length, int(text.get("vocab_size", 49408)), text)
    with quiet(), warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = construct(config, label)
    backbone = OpenCLIPBackbone(model, reader, name=label)
    offers = backbone.offers
    if text_tower:
        offers = tuple(each for each in offers if each != "token embeddings")
    return Architecture(
        name=label,
        family=backbone.tower.family,
        kinds=backbone.kinds,
        width=backbone.embed_dim,
        stride=backbone.stride,
        size=backbone.tower.native_size,
        grid=backbone.tower.native_grid,
        context_length=length if text_tower else backbone.context_length,
        text_pool=str(text.get("hf_pooler_type", "mean_pooler"))
        if text_tower
        else text_pool_type(backbone.text),
        has_logit_bias=backbone.logit_bias is not None,
        tokenizer=tokenizer,
        text_tower=text_tower,
        offers=offers,
        weights=(),
    )


@functools.cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def _released(architecture: str, tag: str, told: Mapping[str, Any]) -> Weights:
    """Weights of open_clip's table."""
    repository = str(told.get("hf_hub", "")).rpartition("/")[0]
    own = _weights(
        tag,
        files_of(told),
        pixels_of_tag(architecture, told),
        quick_gelu=bool(told.get("quick_gelu", False)),
    )
    trained = Preparation(told["resize_mode"], told["interpolation"])
    return own._replace(
        repository=repository, trained=_words(trained), licence=_licence_of(repository)
    )


def _weights(tag: str, files: tuple[str, ...], pixels: Pixels, *, quick_gelu: bool) -> Weights:
    resize = _words(pixels.preparation)
    mean, std = pixels.mean, pixels.std
    return Weights(tag, "", files, mean, std, resize, resize, quick_gelu, None)


def _words(preparation: Preparation) -> str:
    return f"{preparation.resize} {preparation.interpolation}"


def _is_quick(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quick_gelu", False))


def _licence_of(repository: str) -> str | None:
    """The licence that timm's table states of a repository; open_clip's has none."""
    owner, _, model = repository.partition("/")
    if owner != "timm" or "." not in model:
        return None
    try:
        told = timm.get_pretrained_cfg(model)
    except (RuntimeError, ValueError):  # timm does not know this tag
        return None
    if told is None or told.hf_hub_id != repository:
        return None
    return told.license or None


def licence_in(readme: Path | None) -> str | None:
    """The licence that a model card states at its head.

    Args:
        readme: The card; it need not be there.
    """
    if readme is None or not readme.is_file():
        return None
    opening, *parts = readme.read_text("utf-8", errors="replace").split("---\n", 2)
    if opening.strip() or len(parts) < 2:
        return None
    found = _LICENCE.search(parts[0])
    if found is None:
        return None
    name = _LICENCE_NAME.search(parts[0])
    return f"{found[1]} ({name[1]})" if name else found[1]
