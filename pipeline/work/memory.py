"""How much memory a piece of work took at its peak."""

import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_OWN = Path("/proc/self")
_PEAK = "VmHWM:"


class Peak(NamedTuple):
    """The most memory that was held at once.

    Attributes:
        bytes: Its size.
        of: ``"gpu"``: what PyTorch held of it; ``"process"``: all of the process that worked, with
            its libraries and the files it maps; ``"process, since it began"``: the same, earlier
            work included, where the system cannot count anew.
    """

    bytes: int
    of: str


def count_anew(device: torch.device) -> bool:
    """Begin to count; whether the peak of earlier work is forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (_OWN / "clear_refs").write_text("5", encoding="ascii")  # Linux: the peak is what is now
    except OSError:
        return False
    return True


def peak(device: torch.device, *, is_own: bool) -> Peak:
    """The peak since counting began.

    Args:
        device: Where the work was done.
        is_own: What :func:`count_anew` said.
    """
    if device.type == "cuda":
        return Peak(torch.cuda.max_memory_allocated(device), "gpu")
    if is_own:
        lines = (_OWN / "status").read_text(encoding="ascii", errors="replace").splitlines()
        for line in lines:
            if line.startswith(_PEAK):
                return Peak(1024 * int(line.split()[1]), "process")
    if resource is None:
        return Peak(psutil.Process().memory_info().peak_wset, "process, since it began")
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Peak(unit * most, "process, since it began")
