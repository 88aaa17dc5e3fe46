"""Which device this machine computes on."""

from typing import Literal

import torch

Device = Literal["auto", "cpu", "cuda", "mps"]


def find_device(wanted: str = "auto") -> torch.device:
    """The device that is asked for, or the fastest kind there is.

    Args:
        wanted: ``auto`` (CUDA, else Apple's MPS, else the CPU), or a device of torch such as
            ``cuda:1``.

    Raises:
        ValueError: It is none, or not here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"device={wanted!r} is no device; name auto, cpu, cuda or mps") from None
    is_here = {"cpu": True, "cuda": torch.cuda.is_available(),
               "mps": torch.backends.mps.is_available()}  # fmt: skip
    if not is_here.get(device.type, False):
        raise ValueError(f"device={wanted!r}: there is none here; use device='auto'")
    return device
