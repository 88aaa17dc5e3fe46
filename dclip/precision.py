"""The dtype in which a backbone computes, features are compared and losses are summed."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_float32(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Widen half precision to float32; float32 and float64 stay as they are.

    Args:
        values: Any floating-point tensor.

    Returns:
        The same values; the same tensor if it was wide enough.

    Example:
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def computing_in(precision: str, device: str) -> AbstractContextManager[Any]:
    """A block in which a backbone computes in that precision.

    Args:
        precision: ``"float32"``: as its weights are; ``"bfloat16"`` or ``"float16"``: by autocast.
        device: ``"cpu"`` or ``"cuda"``.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device, getattr(torch, precision))
