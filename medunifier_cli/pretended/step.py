"""One step of pre-training on the pretended GPU: the real objectives, backward pass, clipping and AdamW.

What DistributedDataParallel adds (a copy of the gradients, an exchange that the backward pass hides) is not
in it, nor is compilation, which the pretended GPU does not do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from medunifier_cli.data.batch import Batch, to_device
from medunifier_cli.distributed import draws, world
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.objectives.pretraining import PretrainingLoss, build_model
from medunifier_cli.pretended.device import CUDA, Trace, pretended
from medunifier_cli.pretended.functions import functions_of_cuda
from medunifier_cli.pretended.rates import seconds
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.train.finite import Counts, Skips
from medunifier_cli.train.optim import adamw, leave_unchanged

COLLECTIVE = 25e-6
"""Seconds of a small exchange between ranks of one machine."""


class Features(nn.Module):
    """In place of the frozen encoder: its output as a cache would hold it, in bf16."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[B, 1 + V, D_v], read to the device."""
        return torch.empty(len(image_BCHW), self.tokens, self.width, device=CUDA, dtype=torch.bfloat16)


class Exchanges:
    """In place of `torch.distributed`: every rank holds what this one holds."""

    def __init__(self) -> None:
        self.count = 0

    def is_available(self) -> bool:
        """As if the package were there."""
        return True

    def is_initialized(self) -> bool:
        """No group is there to ask: how many ranks there are is pretended."""
        return False

    def all_reduce(self, total: Tensor) -> None:
        """Counted; the sum is left as it is."""
        self.count += 1

    def all_gather_into_tensor(self, rows: Tensor, x: Tensor) -> None:
        """Counted; every rank's rows are this rank's own."""
        self.count += 1
        rows.copy_(x.repeat(len(rows) // len(x), *[1] * (x.dim() - 1)))

    def reduce_scatter_tensor(self, own: Tensor, rows: Tensor) -> None:
        """Counted; what it would write is left as it is."""
        self.count += 1

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        """Counted; every part is this rank's own."""
        self.count += 1
        for part in parts:
            part.copy_(x)


@dataclass(frozen=True)
class Step:
    """What one step was, on one of several ranks."""

    trace: Trace
    pairs: int
    """Of the rank."""
    collectives: int

    @property
    def blocking(self) -> int:
        """Copies and waits for which the CPU stands still."""
        return sum(transfer.blocking for transfer in self.trace.transfers)

    @property
    def flop_per_pair(self) -> float:
        """Of both passes and the optimiser."""
        return sum(launch.flop for launch in self.trace.launches) / self.pairs

    @property
    def pairs_per_s(self) -> float:
        """On this rank, by the assumed rates of `rates.py`."""
        return self.pairs / seconds(self.trace.launches, self.blocking, self.collectives * COLLECTIVE)


def dry_step(
    recipe: PretrainRecipe, vocabulary: int, batch: Batch, ranks: int = 1, live: bool = True
) -> Step:
    """One step as it is after the first, on a rank that pretends to be the first of several.

    Args:
        recipe: of mixed precision.
        vocabulary: token ids, [DEC] included.
        batch: of this rank, on the CPU.
        live: with the image encoder, or with its features given.
    """
    with torch.device("meta"):
        model = build_model(recipe, vocabulary, load=False)
    if not live:
        model.vit = Features(model.vit.tokens, model.vit.width)  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensors without data
        with pretended() as trace, _ranks(ranks) as exchanges, functions_of_cuda(trace) as functions:
            with _disable_current_modes():
                _place(model, trace)
            module = PretrainingLoss(model, vocabulary - 1).train()
            optimizer = adamw(module, recipe.optim)
            with _disable_current_modes():
                _give_state(optimizer, trace)
            skips = Skips(module, CUDA, 10, False, Counts())
            _label(trace, model.vit, "forward", "vit")
            trace.clear()
            exchanges.count = 0
            _step(module, optimizer, skips, batch, functions.cast)
    return Step(trace, len(batch.keys), exchanges.count)


@contextmanager
def _ranks(count: int) -> Iterator[Exchanges]:
    """Pretend to be the first of several ranks."""
    exchanges = Exchanges()
    with ExitStack() as held:
        if count > 1:
            held.enter_context(mock.patch.object(world._place, "size", count))
            held.enter_context(mock.patch.object(world, "dist", exchanges))
        yield exchanges


def _place(model: MedUnifier, trace: Trace) -> None:
    """Put weights and buffers on the pretended GPU; a frozen encoder in bf16, as `MedUnifier.to_device`."""
    is_half = model.recipe.model.vit.frozen and hasattr(model.vit, "vit")
    frozen = {id(part) for part in model.vit.modules() if is_half}
    for part in model.modules():
        half = id(part) in frozen and part is not model.vit
        for name, weight in part._parameters.items():
            if weight is not None:
                dtype = torch.bfloat16 if half else weight.dtype
                made: Any = trace.wrap(torch.empty_like(weight.detach(), dtype=dtype))
                part._parameters[name] = made.requires_grad_(weight.requires_grad)
                made._is_param = True
        for name, buffer in part._buffers.items():
            if buffer is not None:
                floats = buffer.is_floating_point()
                dtype = torch.bfloat16 if half and floats else buffer.dtype
                inner = torch.zeros(buffer.shape, dtype=dtype, device="meta" if floats else "cpu")
                part._buffers[name] = trace.wrap(inner)


def _give_state(optimizer: torch.optim.Optimizer, trace: Trace) -> None:
    """The moments of AdamW, which its first step makes: one pass is enough then to see what others are."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight] = {
                "step": trace.wrap(torch.zeros(())),
                "exp_avg": trace.wrap(torch.empty(weight.shape, device="meta")),
                "exp_avg_sq": trace.wrap(torch.empty(weight.shape, device="meta")),
            }


def _label(trace: Trace, owner: Any, name: str, part: str) -> None:
    """Have what a method launches counted under the name of a part."""
    method = getattr(owner, name)

    def labelled(*args: Any, **kwargs: Any) -> Any:
        before, trace.part = trace.part, part
        try:
            return method(*args, **kwargs)
        finally:
            trace.part = before

    setattr(owner, name, labelled)


def _step(
    module: PretrainingLoss, optimizer: Any, skips: Skips, batch: Batch, cast: dict[int, Tensor]
) -> None:
    """One optimiser step, as `train.loop` has it."""
    skips.begin()
    here = to_device(batch, CUDA)
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        losses, _ = module(here, draws.generator(0, draws.REVIVAL, 0, 0))
    finally:
        cast.clear()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
    (losses["total"] * skips.factor(losses["total"])).backward()  # type: ignore[no-untyped-call]
    # one norm over all gradients and one product, as a GPU does it
    parameters = [p for p in module.parameters() if p.grad is not None]
    ones = [p.grad.new_ones(()) for p in parameters[:2] if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(ones))
    leave_unchanged(optimizer, skips.decide(norm))
    optimizer.step()
    optimizer.zero_grad()
    skips.end()
