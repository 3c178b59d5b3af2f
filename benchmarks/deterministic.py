"""The price of `--deterministic` on a GPU: one training step at the paper's sizes, with and without it.

A step is all four objectives forward and backward, clipping and AdamW, in bf16, from image features on; the
two kinds of steps take turns. Two runs with deterministic kernels must also give the same weights, bit for
bit. On a CPU the option changes nothing, so there is nothing to measure.

    python benchmarks/deterministic.py [--repeats 20] [--batch 64] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import torch
from objectives import build, make_batch
from torch import nn

from medunifier_cli.data.batch import to_device
from medunifier_cli.recipe.schema_train import OptimConfig
from medunifier_cli.train.determinism import use_deterministic_kernels
from medunifier_cli.train.optim import adamw

WARM_UP = 3


class Training:
    """The paper's objectives on one batch on the GPU, and the optimiser."""

    def __init__(self, size: int) -> None:
        device = torch.device("cuda")
        batch, self.lengths = make_batch(size)
        self.objectives = build(batch).to(device)
        vit: Any = self.objectives.model.vit
        vit.features = vit.features.to(device)
        self.batch = to_device(batch, device)
        self.optimizer = adamw(self.objectives, OptimConfig())

    def step(self) -> float:
        """One step; seconds."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            losses, _ = self.objectives(self.batch)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(self.objectives.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.cuda.synchronize()
        return time.perf_counter() - started


def weights_after(steps: int, size: int) -> list[torch.Tensor]:
    """All weights after some steps from the same start."""
    training = Training(size)
    for _ in range(steps):
        training.step()
    return [parameter.detach().cpu() for parameter in training.objectives.parameters()]


def measure(repeats: int, size: int) -> dict[str, Any]:
    """Seconds of a step without and with deterministic kernels, their ratio, and whether runs repeat."""
    use_deterministic_kernels(cpu=False)  # before anything starts cuBLAS
    training = Training(size)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(WARM_UP + repeats):
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            taken = training.step()
            if number >= WARM_UP:
                seconds[deterministic].append(taken)
    ratios = [with_it / without for without, with_it in zip(seconds[False], seconds[True], strict=True)]
    del training
    one, other = weights_after(WARM_UP, size), weights_after(WARM_UP, size)
    return {
        "ratio": round(median(ratios), 3), "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "median_s": {
            "usual": round(median(seconds[False]), 4), "deterministic": round(median(seconds[True]), 4)
        },
        "repeats_bit_for_bit": all(torch.equal(a, b) for a, b in zip(one, other, strict=True)),
    }  # fmt: skip


def main() -> None:
    """Print the ratio, or that there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="Two steps of four pairs.")
    options = parser.parse_args()
    if options.tiny:
        options.repeats, options.batch = 2, 4
    result: dict[str, Any] = {"benchmark": "deterministic", "batch": options.batch}
    if torch.cuda.is_available():
        result |= {"device": torch.cuda.get_device_name(), **measure(options.repeats, options.batch)}
    else:
        result |= {"device": "cpu", "ratio": None}
        print("no GPU is there; on a CPU --deterministic changes nothing, so it costs nothing")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
