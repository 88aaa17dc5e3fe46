"""Weight files, read without running anything in them and loaded without leaving anything out."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dclip.backbones.archives import is_archive, read_archive
from dclip.words import first_line

# OpenAI's archives keep these three numbers among the weights.
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or ``.pt`` file; pickled objects in it are refused.

    OpenAI's TorchScript archives are read without running their code. A training checkpoint that
    keeps the weights under ``state_dict`` is understood, with or without the ``module.`` prefix of
    data-parallel training.

    Args:
        path: A file written by ``safetensors`` or by ``torch.save``.

    Raises:
        ValueError: If there is no such file, or it holds anything but named tensors.
    """
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error

    if is_archive(path):
        return _weights_alone(read_archive(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of tensors only ({first_line(error)}); save it with"
            " torch.save(model.state_dict(), ...) or as .safetensors"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{path} does not hold a state dict, that is, tensors by name")
    prefix = "module."
    if content and all(name.startswith(prefix) for name in content):
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return _weights_alone(content)


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Give ``model`` exactly the weights of ``state_dict``, cast to the model's own dtype.

    Args:
        model: Changed in place.
        state_dict: Tensors by name.
        source: What an error calls the weights.

    Raises:
        ValueError: If a weight is missing, left over or of another shape.
    """
    own = model.state_dict()
    problems = {
        "missing": sorted(own.keys() - state_dict.keys()),
        "unexpected": sorted(state_dict.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(state_dict[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state_dict and state_dict[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        said = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(
            f"the weights of {source} do not fit the architecture ({said}); check the name of the"
            " architecture and the origin of the weights"
        )
    model.load_state_dict(state_dict)


def _weights_alone(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the numbers that OpenAI keeps among the weights."""
    return {name: value for name, value in content.items() if name not in _OPENAI_NUMBERS}
