"""Training steps of full.yaml on a card or a CPU, as the loop does them, on one rank or several."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from objectives import NO_VIT, TINY, Sizes, flops, make_batch, peak_mib
from torch import nn

from medunifier_cli.data.batch import to_device
from medunifier_cli.data.contract import Batch
from medunifier_cli.distributed import draws, world
from medunifier_cli.distributed.launch import run_ranks
from medunifier_cli.objectives.pretraining import PretrainingLoss, build_model
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.train import loop
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.compiling import compiled
from medunifier_cli.train.finite import Counts, Skips
from medunifier_cli.train.optim import adamw
from medunifier_cli.train.throughput.cards import peak_of

WARM_UP, ROUNDS, STEPS = 3, 4, 5
"""Steps before the clock starts; then rounds of steps between two waits for the device."""
RANDOM = ("model.vit.weights=random", "model.qformer.weights=random", "train.tensorboard=false")


class Training:
    """One batch, the objectives on it, and the optimiser, on this rank's card or on a CPU.

    Args:
        pairs: of this rank.
        kind: `live`, with the image encoder; `compiled`, the same with `train.compile`; or `cached`, with
            features that come with the batch.
        overrides: of the recipe.
    """

    def __init__(
        self, pairs: int, sizes: Sizes, kind: str, folder: Path, overrides: tuple[str, ...] = ()
    ) -> None:
        vit = NO_VIT if kind == "cached" or sizes.overrides else ()
        self.recipe = load_recipe("full", [*RANDOM, *vit, *sizes.overrides, *overrides])
        self.accelerator = accelerator_of(self.recipe.train, folder)
        self.device = self.accelerator.device
        torch.manual_seed(0)
        with self.device:  # a billion random weights take no time on a card, and half a minute on a core
            model = build_model(self.recipe, sizes.vocabulary, load=False)
        self.module = PretrainingLoss(model.to_device(self.device), sizes.vocabulary - 1).train()
        optimizer = adamw(self.module, self.recipe.optim)
        scaled, limit = self.accelerator.scaler is not None, self.recipe.train.skip_limit
        self.skips = Skips(self.module, self.device, limit, scaled, Counts())
        self.batch = self.batch_of(pairs, sizes)
        if kind == "cached":
            feature_BVD = torch.randn(pairs, model.vit.tokens, model.vit.width).bfloat16()
            self.batch = replace(self.batch, feature_BVD=feature_BVD)
        self.pairs, self.done = pairs, 0
        stage: Any = self  # what the loop asks of a stage in a step: `module` and `step`
        self.prepared, self.optimizer = loop.prepare(stage, self.accelerator, optimizer)

    def batch_of(self, pairs: int, sizes: Sizes) -> Batch:
        """This rank's pairs, on the CPU; those of no other rank have the same texts."""
        batch, self.lengths = make_batch(pairs, sizes)
        first = world.rank() * pairs
        return replace(batch, digest_B=batch.digest_B + first, position_B=batch.position_B + first)

    def step(self, module: nn.Module, batch: Batch, step: int, micro: int) -> Any:
        """As `Pretraining.step`: the loop asks for it."""
        return module(batch, draws.generator(0, draws.REVIVAL, step, micro))

    def run(self, steps: int = 1) -> None:
        """Optimiser steps, the batch's way to the device included; does not wait for the last one."""
        for _ in range(steps):
            loop.begin_step(self.optimizer, self.recipe.optim.peak_lr, 0, self.done)
            here = to_device(self.batch, self.device)
            stage: Any = self
            loop.optimise(
                stage, self.prepared, self.accelerator, self.optimizer, [here], self.done,
                self.recipe.optim.clip_norm, self.skips,
            )  # fmt: skip
            self.done += 1

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, steps: int) -> float:
        """Of some steps, from idle to idle."""
        self.wait()
        started = time.perf_counter()
        self.run(steps)
        self.wait()
        return time.perf_counter() - started


def peak_gib(training: Training, steps: int) -> float:
    """Most memory held while it trains: of the card, or of this process."""
    if training.device.type != "cuda":
        return peak_mib(lambda: training.run(steps)) / 1024
    torch.cuda.reset_peak_memory_stats()
    training.run(steps)
    training.wait()
    return float(torch.cuda.max_memory_allocated()) / 2**30


def rate_of(training: Training, rounds: int, steps: int, work: float) -> dict[str, Any]:
    """Samples a second over all ranks, memory, arithmetic and utilisation of one rank's card.

    Args:
        work: FLOP of a sample.
    """
    training.run(WARM_UP)
    memory = peak_gib(training, 1)
    ranks = world.size()
    rates = [ranks * training.pairs * steps / training.seconds(steps) for _ in range(rounds)]
    card = torch.cuda.get_device_name() if training.device.type == "cuda" else ""
    peak = peak_of(card)
    return {
        "samples_per_s": round(median(rates), 2), "spread": [round(min(rates), 2), round(max(rates), 2)],
        "peak_gib": round(memory, 2), "tflop_per_sample": round(work / 1e12, 4),
        "utilisation": round(work * median(rates) / ranks / peak, 3) if peak else None,
    }  # fmt: skip


def rates_on_rank(kind: str, overrides: tuple[str, ...], options: dict[str, Any], out: str) -> None:
    """One rank's part of `rates`; the first one writes what was measured to `out`."""
    tiny = options["tiny"]
    sizes = TINY if tiny else Sizes()
    training = Training(options["batch"], sizes, kind, Path(out).parent, overrides)
    # on every rank, as a step is something that they do together
    work = flops(training.run) / training.pairs
    with compiled(training.module) if kind == "compiled" else nullcontext():
        found = rate_of(training, *((1, 2) if tiny else (ROUNDS, STEPS)), work)
    if world.is_main():
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    world.leave()


def rates(
    kind: str, overrides: tuple[str, ...], ranks: int, options: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Measure steps on several ranks, in processes of their own, or on one, in this process.

    Raises:
        SystemExit: a rank failed; its error is above.
    """
    out = folder / "rates.json"
    arguments = (kind, overrides, options, str(out))
    if ranks == 1:
        rates_on_rank(*arguments)
    elif code := run_ranks(ranks, rates_on_rank, arguments):
        raise SystemExit(code)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def largest_parts(training: Training, steps: int, count: int = 10) -> dict[str, dict[str, float]]:
    """The operations whose kernels take most of a step, by PyTorch's profiler: milliseconds, share of all."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = training.device.type == "cuda"
    training.run(WARM_UP)
    training.wait()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        training.run(steps)
        training.wait()
    # kernels are events of their own too, and count for the operations that launch them
    taken = {
        event.key: float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU
    }
    whole, largest = sum(taken.values()), sorted(taken, key=lambda name: taken[name], reverse=True)[:count]
    return {
        name[:60]: {"ms": round(taken[name] / steps / 1000, 3), "share": round(taken[name] / whole, 4)}
        for name in largest
    }
