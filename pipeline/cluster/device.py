"""On which device tensors are, and why."""

import sys

import torch

from dclip.words import counted
from pipeline.terminal.errors import StageError


def choose_device(wanted: str) -> tuple[str, str]:
    """Device for tensors, and why: ``("cpu", "no CUDA device")``.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        StageError: CUDA was asked for and is not there.
    """
    if wanted == "cpu":
        return "cpu", "as asked"
    gpus = _gpus()
    if wanted == "cuda" and not gpus:
        raise StageError("--device cuda: there is no CUDA device; use --device auto or cpu")
    return ("cuda", gpus) if gpus else ("cpu", "no CUDA device")


def _gpus() -> str:
    """The GPUs at hand, in words: those of the cluster once it is joined, else of this machine."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        count = int(sys.modules["ray"].cluster_resources().get("GPU", 0))
        if count:
            return f"{counted(count, 'GPU')} of the cluster"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
