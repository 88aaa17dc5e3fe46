"""Weights out of a TorchScript archive, the form in which OpenAI gave CLIP away.

Such an archive is a zip of tensors, of code, and of a pickle that says which tensor is which
parameter of which module. torch reads it by compiling the code. Here the code is not looked at, and
the pickle can make nothing but modules without behaviour, dictionaries, lists and tensors: any
other name in it ends the reading.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dclip.words import first_line

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive, told by its table of contents."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_archive(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of the module in an archive, by name.

    Args:
        path: A file that `is_archive`.

    Raises:
        ValueError: If it holds anything but modules, containers and tensors, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            room = next(
                name.removesuffix("data.pkl")
                for name in archive.namelist()
                if name.count("/") == 1 and name.endswith("/data.pkl")
            )
            data = archive.read(f"{room}data.pkl")
            module = _Reader(data, lambda key: archive.read(f"{room}data/{key}")).load()
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, StopIteration, EOFError, OSError),
        *(KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError),
    ) as error:
        raise ValueError(
            f"{path} cannot be read as a TorchScript archive ({first_line(error)})"
        ) from error
    if not isinstance(module, _Module):
        raise ValueError(f"{path} holds no module")
    return dict(module.tensors())


class _Module:
    """A module of an archive: what it holds by name, and nothing that it does."""

    def __setstate__(self, state: object) -> None:
        self.parts = dict(state) if isinstance(state, dict) else {}

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor in it and in its modules, by name."""
        for name, part in getattr(self, "parts", {}).items():
            if isinstance(part, Tensor):
                yield f"{prefix}{name}", part
            elif isinstance(part, _Module):
                yield from part.tensors(f"{prefix}{name}.")


class _Reader(pickle.Unpickler):
    """Of the pickle in an archive; every class and function in it is one of ours."""

    def __init__(self, data: bytes, storage: Callable[[str], bytes]) -> None:
        super().__init__(BytesIO(data))
        self._storage = storage
        self._kept: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        own: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            **{
                ("torch.jit._pickle", f"build_{kind}list"): list
                for kind in ("int", "double", "bool", "tensor")
            },
        }
        if (module, name) not in own:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no part of weights"
            )
        return own[module, name]

    def persistent_load(self, saved: Any) -> Tensor:
        _, dtype, key, _, count = saved
        if key not in self._kept:
            numbers = torch.frombuffer(bytearray(self._storage(str(key))), dtype=dtype)
            if len(numbers) < count:
                raise ValueError(f"tensor {key} is cut short")
            self._kept[key] = numbers
        return self._kept[key]


def _tensor(
    numbers: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    """A tensor out of the numbers that it may share with others."""
    return numbers.as_strided(size, stride, offset).clone()
