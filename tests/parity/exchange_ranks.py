"""One of two ranks of `test_exchanges`.

python -m tests.parity.exchange_ranks OUT RANK
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medunifier_cli.distributed import world
from medunifier_cli.train.accelerator import HOOKS

RANKS, ROWS = 2, 3


def weights(rank: int) -> Tensor:
    """How a rank's loss weighs the rows of all."""
    return torch.randn(RANKS * ROWS, 4, 2, generator=torch.Generator().manual_seed(10 + rank))


def gathered() -> dict[str, Tensor]:
    """Rows of all ranks, and the gradient of this rank's, by both ways of summing it."""
    values = {}
    for name, scatters in (("all-reduce", False), ("reduce-scatter", True)):
        world.scatters = lambda _, scatters=scatters: scatters
        x = torch.arange(ROWS * 8.0).view(ROWS, 4, 2).add(100 * world.rank()).requires_grad_()
        # a gradient that is no contiguous tensor
        rows = world.gather(x)
        (rows * weights(world.rank())).transpose(0, 1).sum().backward()
        values |= {f"rows, {name}": rows.detach(), f"gradient, {name}": x.grad}
    return values


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def inputs(rank: int, micro: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * rank + micro))


def gradients(name: str, view: bool) -> dict[str, Tensor]:
    """After two steps of two micro-batches each, of which the first exchanges nothing."""
    module = network()
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=view)
    DistributedDataParallelKwargs(comm_hook=HOOKS[name]).register_comm_hook(wrapped)
    for step in range(2):
        module.zero_grad()
        with wrapped.no_sync():
            wrapped(inputs(world.rank(), 2 * step)).square().sum().backward()
        wrapped(inputs(world.rank(), 2 * step + 1)).square().sum().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1e6)
    return {f"{name}, {view}, {k}": p.grad.clone() for k, p in module.named_parameters()}


def main() -> None:
    out, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=RANKS)
    values = gathered()
    for name in HOOKS:
        for view in (True, False):
            values |= gradients(name, view)
    torch.save(values, out / f"{rank}.pt")
    world.leave()


if __name__ == "__main__":
    main()
