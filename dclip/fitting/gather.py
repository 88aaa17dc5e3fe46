"""Rows of all workers on each of them, with gradients: what contrastive losses compare with."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Gathered(NamedTuple):
    """Rows of all workers.

    Attributes:
        rows: Those of the first worker, then those of the next.
        first: Place of this worker's own.
    """

    rows: Float[Tensor, "all dim"]
    first: int


def world_size() -> int:
    """Number of processes that train together; 1 where there is no group of them."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def gather_rows(own: Float[Tensor, "rows dim"]) -> Gathered:
    """The rows of all workers, in the order of their ranks.

    Each worker calls it once at the same point of its step, with as many rows as it has, none
    included. A gradient that reaches any row on any worker flows back to the worker it came from:
    the sum over the workers of what each makes of the rows has the gradient that one worker with
    all of them would have. What is to be compared with all the rest should be joined along the last
    axis and gathered once: it is one message, and one in the backward pass.

    Args:
        own: Rows of this worker, in the default process group of ``torch.distributed``; where
            there is none, all rows.
    """
    world = world_size()
    if world == 1:
        return Gathered(own, 0)
    count = torch.tensor([len(own)], device=own.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    torch.distributed.all_gather(counts, count)
    sizes = tuple(int(each) for each in counts)
    first = sum(sizes[: torch.distributed.get_rank()])
    rows: Tensor = _Gather.apply(own, sizes, first)
    return Gathered(rows, first)


def draw_rows(
    count: int, total: int, draws: int, device: torch.device
) -> Float[Tensor, "count draws"]:
    """Numbers in [0, 1) for each row of this worker, from torch's generator.

    They belong to places in the batch, of which each worker has every so-manyth, and are those that
    the first worker draws: an image has the same ones for any number of workers.

    Args:
        count: Rows of this worker.
        total: Rows of all workers.
        draws: Numbers for each row.
        device: On which workers exchange messages.
    """
    world = world_size()
    drawn = torch.rand(total, draws)
    if world == 1:
        return drawn[:count]
    sent = drawn.to(device)
    torch.distributed.broadcast(sent, 0)
    return sent.cpu()[torch.distributed.get_rank() :: world][:count]


class _Gather(torch.autograd.Function):
    """All workers' rows; its gradient is summed over the workers, of which each takes its part."""

    @staticmethod
    def forward(
        ctx: Any, own: Float[Tensor, "rows dim"], sizes: tuple[int, ...], first: int
    ) -> Float[Tensor, "all dim"]:
        ctx.part = slice(first, first + len(own))
        most = max(sizes)  # messages are of one size
        padded = own.new_zeros(most, own.shape[1])
        padded[: len(own)] = own
        received = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(received, padded)
        return torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "all dim"]
    ) -> tuple[Float[Tensor, "rows dim"], None, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[ctx.part], None, None
