"""Collective operations between ranks; the only module that knows how many processes there are.

With one process everything here is the identity, and nothing of `torch.distributed` is called. Which rank
this is stays known after the group has ended: a rank that took itself for the only one would write files.

Gradients: every rank runs `backward` on a loss of its own, and DistributedDataParallel averages the gradients
over ranks. Losses are scaled so that their *average* over ranks is the loss of one process on the global
batch (`share_of_mean`). The operations with gradient (`all_sum`, `gather`) give a rank the *sum* of the
gradients of all ranks' losses; averaged, that is the gradient of the global loss. With the gradient of its
own loss alone, a rank would miss what its features contribute to the losses of the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medunifier_cli.distributed.lifeline import Lifeline
from medunifier_cli.distributed.meeting import Meeting, names
from medunifier_cli.terminal.say import say

GROUP_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
"""Texts of the errors of collective operations, when another rank is gone."""


@dataclass
class _Place:
    """What this process knows of its group."""

    rank: int = 0
    size: int = 1
    meeting: Meeting | None = None
    lifeline: Lifeline | None = None
    alone: bool = False
    """See `alone`."""


_place = _Place()


def join(timeout: float, setting: str = " (train.timeout)") -> None:
    """Meet the other ranks of the group that torch has formed, and begin to watch them; nothing for one rank.

    Args:
        timeout: seconds after which a rank that is silent or behind ends the run.
        setting: what sets it, for messages, where the user can.
    """
    if size() == 1 or _place.meeting is not None:
        return
    meeting = _place.meeting = Meeting(rank(), size())
    address = os.environ["MASTER_ADDR"]
    lifeline = Lifeline(rank(), size(), timeout, "FORK_LAUNCHED" in os.environ, setting)
    away: list[int] = []
    if is_main():
        server, place = lifeline.listen(address)
        meeting.tell("lifeline", place)
        away = lifeline.accept(server, place)
    else:
        try:
            lifeline.connect(address, meeting.told("lifeline"))
        except OSError:
            away = [rank()]
    if is_main() and away:
        say(
            f"warning: {names(away)} cannot reach rank 0 at {address} by another port (a firewall?); if one "
            "dies or hangs, that is noticed late, by torch's own time-out"
        )
    _place.lifeline = lifeline
    meeting.lost = lambda: lifeline.verdict
    lifeline.watch()


def size() -> int:
    """Number of ranks."""
    if _place.alone:
        return 1
    if dist.is_available() and dist.is_initialized():
        _place.rank, _place.size = dist.get_rank(), dist.get_world_size()
    return _place.size


def rank() -> int:
    """This process, from 0."""
    return _place.rank if size() > 1 else 0


def is_main() -> bool:
    """True on the rank that writes files."""
    return rank() == 0


@contextmanager
def alone(on: bool = True) -> Iterator[None]:
    """Compute as if this process were the only one, without an exchange: for what is no part of the run.

    Args:
        on: False sees all ranks again, within such a block.
    """
    before, _place.alone = _place.alone, on
    try:
        yield
    finally:
        _place.alone = before


def tick() -> None:
    """Count a step or a collective operation that begins, by which a rank that stays behind is told."""
    if _place.lifeline is not None:
        _place.lifeline.progress += 1


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)  # all_reduce works in place
        tick()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # d(sum)/dx is 1 on every rank, and each rank's loss read the sum: their gradients add up
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        # one shape on all ranks, hence equal numbers of rows
        rows = x.new_empty(size() * ctx.rows, *x.shape[1:])
        tick()
        dist.all_gather_into_tensor(rows, x.contiguous())
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Summed over ranks, of which this rank takes its own rows.
        if scatters(grads[0].device):
            own = grads[0].new_empty(ctx.rows, *grads[0].shape[1:])
            dist.reduce_scatter_tensor(own, grads[0].contiguous())
            return own
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def scatters(device: torch.device) -> bool:
    """Whether ranks get no more of a sum than their own rows of it, which halves what they exchange.

    Not on CPUs, where runs keep the order in which they have always added.
    """
    return device.type == "cuda"


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks. Its gradient is the sum of all ranks' gradients."""
    if size() == 1:
        return x
    total: Tensor = _AllSum.apply(x)
    return total


def gather(x: Tensor) -> Tensor:
    """[B, ...] of each rank -> [size * B, ...], rank after rank. Every rank must hold the same B.

    The gradient of a row is the sum of the gradients that all ranks have for it, so a loss that is averaged
    over ranks (as DistributedDataParallel averages gradients) equals that of one process on the whole batch.
    """
    if size() == 1:
        return x
    rows: Tensor = _Gather.apply(x)
    return rows


def total(local: Tensor | float, device: torch.device) -> Tensor:
    """The sum of a number over ranks, a float32 scalar on `device`; the CPU does not wait for it."""
    if isinstance(local, Tensor):
        return all_sum(local.to(device, torch.float32))
    # `full` and not a tensor of the number, which would be copied to a GPU, and waited for
    return all_sum(torch.full((), local, dtype=torch.float32, device=device))


def share_of_mean(local_sum: Tensor, count_of_all: Tensor) -> Tensor:
    """This rank's part of the mean over all ranks' items, scaled so that its average over ranks is that mean.

    Args:
        local_sum: over this rank's items, with gradient.
        count_of_all: `total` of the number or weight of each rank's items, which may differ, and be 0.
    """
    # times size, since the average over ranks divides by it; a batch without any item gives 0 and not NaN,
    # and weights may well sum to less than 1
    return local_sum * size() / count_of_all.clamp(min=1e-6)


def mean(x: Tensor) -> Tensor:
    """Average over ranks, without gradient."""
    # a sum and a division: gloo has no average of its own
    return all_sum(x.detach()) / size()


def of_main(x: Tensor) -> Tensor:
    """The main rank's values, on all ranks, without gradient. All hold the same shape."""
    return all_sum(x.detach() if is_main() else torch.zeros_like(x))  # adding zeros changes no bit


def exchange(value: Any, limit: float | None = None) -> list[Any]:
    """Each rank's value, in order of rank, on all of them; see `Meeting.exchange`."""
    if size() == 1:
        return [value]
    if _place.meeting is None:
        raise RuntimeError("`join` comes first")
    gathered: list[Any] = _place.meeting.exchange(value, limit)
    return gathered


def barrier() -> None:
    """Wait for all ranks, as long as their processes live: the main rank may have hours of work to do."""
    exchange(None)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true on any rank; every rank gets the same answer."""
    if size() == 1:
        return flag
    return bool(all_sum(torch.tensor(float(flag), device=device)) > 0)


def collect_rows(row: Tensor) -> list[Tensor]:
    """Each rank's tensor, in order of rank, on all of them, without gradient. All have the same shape."""
    if size() == 1:
        return [row]
    parts = [torch.empty_like(row) for _ in range(size())]
    tick()
    dist.all_gather(parts, row.contiguous())
    return parts


def why_lost(error: BaseException) -> str:
    """The line about the rank that is to blame for an error of this one; empty if it is this one's own."""
    lifeline = _place.lifeline
    if lifeline is None:
        return ""
    # gloo's own errors are of no class of their own; they are told by their text
    of_group = isinstance(error.__cause__ or error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in GROUP_WORDS)
    )
    return lifeline.verdict or (lifeline.await_verdict() if of_group else "")


def lost_code() -> int:
    """Exit code of the rank that `why_lost` tells of."""
    return _place.lifeline.code if _place.lifeline is not None else 1


def fail(code: int) -> None:
    """Tell the other ranks that this one ends with an error, so that none waits for it."""
    if _place.lifeline is not None:
        _place.lifeline.fail(code)


def leave() -> None:
    """Leave the process group, the last of all: without it gloo aborts at exit."""
    if _place.lifeline is not None:
        _place.lifeline.leave()
    _place.meeting = _place.lifeline = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
