"""The dtype in which features are compared and losses are summed."""

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
