"""One training step of full.yaml on a pretended GPU: waits, launches, bytes, memory, FLOP, predicted rate.

No GPU is needed: `pretended/device.py` says how. The step is the real one: all objectives, backward pass,
clipping and AdamW, on 1 and on 4 pretended ranks, with the image encoder live and with its features given.
What DistributedDataParallel adds (1.1 GiB of buckets, an exchange that the backward pass hides) is not in it.

    python benchmarks/step.py [--batch 64] [--ranks 1 4] [--tiny] [--places]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from objectives import NO_VIT, TINY, Sizes, make_batch  # noqa: E402
from pretended.device import CUDA, Trace, pretended  # noqa: E402
from pretended.functions import functions_of_cuda  # noqa: E402
from pretended.rates import seconds  # noqa: E402

from medunifier_cli.data.batch import to_device  # noqa: E402
from medunifier_cli.data.contract import Batch  # noqa: E402
from medunifier_cli.distributed import draws, world  # noqa: E402
from medunifier_cli.model.medunifier import MedUnifier  # noqa: E402
from medunifier_cli.objectives.pretraining import PretrainingLoss  # noqa: E402
from medunifier_cli.recipe.load import load_recipe  # noqa: E402
from medunifier_cli.train.finite import Counts, Skips  # noqa: E402
from medunifier_cli.train.optim import adamw, leave_unchanged  # noqa: E402

TERA = 1e12
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
        return True

    def is_initialized(self) -> bool:
        return False

    def all_reduce(self, total: Tensor) -> None:
        self.count += 1

    def all_gather_into_tensor(self, rows: Tensor, x: Tensor) -> None:
        self.count += 1
        rows.copy_(x.repeat(len(rows) // len(x), *[1] * (x.dim() - 1)))

    def reduce_scatter_tensor(self, own: Tensor, rows: Tensor) -> None:
        self.count += 1

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        self.count += 1
        for part in parts:
            part.copy_(x)


@contextmanager
def ranks(count: int) -> Iterator[Exchanges]:
    """Pretend to be the first of several ranks."""
    exchanges = Exchanges()
    with ExitStack() as held:
        if count > 1:
            held.enter_context(mock.patch.object(world._place, "size", count))
            held.enter_context(mock.patch.object(world, "dist", exchanges))
        yield exchanges


def build(sizes: Sizes, live: bool) -> MedUnifier:
    """full.yaml's model on the `meta` device."""
    small = sizes.overrides
    vit = () if live and not small else NO_VIT
    recipe = load_recipe("full", ["model.qformer.weights=random", "model.vit.weights=random", *vit, *small])
    with torch.device("meta"):
        model = MedUnifier(recipe, sizes.vocabulary, load=False)
    if not live:
        model.vit = Features(model.vit.tokens, model.vit.width)
    return model


def place(model: MedUnifier, trace: Trace) -> None:
    """Put weights and buffers on the pretended GPU; a frozen encoder in bf16, as `MedUnifier.to_device`."""
    frozen = {id(part) for part in model.vit.modules() if hasattr(model.vit, "vit")}
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


def label(trace: Trace, owner: Any, name: str, part: str) -> None:
    """Have what a method launches counted under the name of a part."""
    method = getattr(owner, name)

    def labelled(*args: Any, **kwargs: Any) -> Any:
        before, trace.part = trace.part, part
        try:
            return method(*args, **kwargs)
        finally:
            trace.part = before

    setattr(owner, name, labelled)


def step(
    module: PretrainingLoss, optimizer: Any, skips: Skips, batch: Batch, cast: dict[int, Tensor]
) -> None:
    """One optimiser step, as `train.loop._optimise` has it."""
    skips.begin()
    here = to_device(batch, CUDA)
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        losses, _ = module(here, draws.generator(0, draws.REVIVAL, 0, 0))
    finally:
        cast.clear()
        torch.set_autocast_enabled("cuda", False)
    (losses["total"] * skips.factor(losses["total"])).backward()
    # one norm over all gradients and one product, as a GPU does it
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([p.grad.new_ones(()) for p in parameters[:2]]))
    leave_unchanged(optimizer, skips.decide(norm))
    optimizer.step()
    optimizer.zero_grad()
    skips.end()


def measure(batch: Batch, sizes: Sizes, count: int, live: bool, places: bool = False) -> dict[str, float]:
    """The second step, which has the optimiser's state already."""
    model = build(sizes, live)
    with pretended() as trace, ranks(count) as exchanges, functions_of_cuda(trace) as functions:
        with _disable_current_modes():
            place(model, trace)
        module = PretrainingLoss(model, sizes.vocabulary - 1).train()
        optimizer = adamw(module, model.recipe.optim)
        skips = Skips(module, CUDA, 10, False, Counts())
        label(trace, model.vit, "forward", "vit")
        for _ in range(2):
            trace.clear()
            exchanges.count = 0
            step(module, optimizer, skips, batch, functions.cast)
        pairs = len(batch.keys)
        blocking = [transfer for transfer in trace.transfers if transfer.blocking]
        taken = seconds(trace.launches, len(blocking), exchanges.count * COLLECTIVE)
        if places:
            for (kind, where), times in Counter((t.kind, t.where) for t in trace.transfers).items():
                stops = any(t.blocking and t.where == where and t.kind == kind for t in trace.transfers)
                print(f"  {times} x {kind} {where}{', waited for' if stops else ''}")
        return {
            "blocking_transfers": len(blocking),
            "transfers": len(trace.transfers),
            "launches": len(trace.launches),
            "collectives": exchanges.count,
            "gigabytes": round(sum(launch.bytes for launch in trace.launches) / 1e9, 3),
            "peak_gib": round(trace.peak / 2**30, 3),
            "tflop_per_sample": round(sum(launch.flop for launch in trace.launches) / pairs / TERA, 4),
            "predicted_samples_per_s": round(pairs / taken, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--places", action="store_true", help="print where copies are made and waited for")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that this file runs")
    options = parser.parse_args()
    sizes, pairs = (TINY, 4) if options.tiny else (Sizes(), options.batch)
    batch, lengths = make_batch(pairs, sizes)
    print(lengths)
    result: dict[str, Any] = {"benchmark": "step", "batch": pairs}
    for count in options.ranks:
        for name, live in (("live", True), ("cached", False)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about tensors without data
                numbers = measure(batch, sizes, count, live, options.places)
            result |= {f"{key}_{count}_{name}": value for key, value in numbers.items()}
            print(f"{count} rank{'s' * (count > 1)}, {name}: {numbers}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
