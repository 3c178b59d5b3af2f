"""The only module that knows how many processes there are.

With one process everything here is the identity, and nothing of `torch.distributed` is touched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_main() -> bool:
    """True on the rank that writes files."""
    return rank() == 0


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks. Its gradient is the sum of all ranks' gradients."""
    if size() == 1:
        return x
    total: Tensor = _AllSum.apply(x)
    return total


def gather(x: Tensor) -> Tensor:
    """[B, ...] of each rank -> [size * B, ...], rank after rank. Every rank must hold the same B.

    The gradient of a row is the sum of what all ranks made of it, so a loss that is averaged over ranks
    (as DistributedDataParallel averages gradients) equals the loss of one process on the whole batch.
    """
    if size() == 1:
        return x
    rows: Tensor = _Gather.apply(x)
    return rows


def share_of_mean(local_sum: Tensor, local_count: Tensor | float) -> Tensor:
    """This rank's part of the mean over all ranks' items, scaled: averaged over ranks it is that mean."""
    count = torch.as_tensor(local_count, dtype=torch.float32, device=local_sum.device)
    return local_sum * size() / all_sum(count).clamp(min=1.0)


def mean(x: Tensor) -> Tensor:
    """Average over ranks, without gradient."""
    return all_sum(x.detach()) / size()


def barrier() -> None:
    """Wait for all ranks."""
    if size() > 1:
        dist.barrier()


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank as soon as it is on one."""
    if size() == 1:
        return flag
    return bool(all_sum(torch.tensor(float(flag), device=device)) > 0)


def collect_rows(row: Tensor) -> list[Tensor]:
    """The same-shaped tensor of each rank, in order, on all of them."""
    if size() == 1:
        return [row]
    parts = [torch.empty_like(row) for _ in range(size())]
    dist.all_gather(parts, row.contiguous())
    return parts


def leave() -> None:
    """End the process group; without it gloo aborts at exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
