"""The price of `--deterministic` on a GPU: one training step at the paper's sizes, with and without it.

A step is all four objectives forward and backward, clipping and AdamW, in bf16, from image features on; the
two kinds of steps take turns. Two runs with deterministic kernels must also give the same weights, bit for
bit. On a CPU the option changes nothing, so there is nothing to measure; `--device cpu --tiny` runs the code.

    python benchmarks/deterministic.py [--repeats 20] [--batch 64] [--device cpu] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from card.training import Training  # noqa: E402
from objectives import TINY, Sizes  # noqa: E402

from medunifier_cli.train.determinism import use_deterministic_kernels  # noqa: E402

WARM_UP = 3


def weights_after(steps: int, build: Callable[[], Training]) -> list[torch.Tensor]:
    """All weights after some steps from the same start."""
    training = build()
    training.run(steps)
    return [parameter.detach().cpu() for parameter in training.module.parameters()]


def measure(repeats: int, build: Callable[[], Training]) -> dict[str, Any]:
    """Seconds of a step without and with deterministic kernels, their ratio, and whether runs repeat."""
    use_deterministic_kernels(cpu=False)  # before anything starts cuBLAS
    training = build()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(WARM_UP + repeats):
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            torch.backends.cudnn.benchmark = not deterministic
            taken = training.seconds(1)
            if number >= WARM_UP:
                seconds[deterministic].append(taken)
    ratios = [with_it / without for without, with_it in zip(seconds[False], seconds[True], strict=True)]
    del training
    one, other = weights_after(WARM_UP, build), weights_after(WARM_UP, build)
    torch.use_deterministic_algorithms(False)
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
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two steps of four pairs")
    options = parser.parse_args()
    if options.tiny:
        options.repeats, options.batch = 2, 4
    result: dict[str, Any] = {"benchmark": "deterministic", "batch": options.batch}
    on_gpu = torch.cuda.is_available() and options.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    if options.device == "cuda" and not on_gpu:
        result |= {"device": None, "ratio": None}
        print("no GPU is there; on a CPU --deterministic changes nothing, so it costs nothing")
    else:
        exact = ("train.deterministic=true", *(() if on_gpu else ("train.precision=no",)))
        sizes = TINY if options.tiny else Sizes()
        with tempfile.TemporaryDirectory() as folder:
            build = partial(Training, options.batch, sizes, "cached", Path(folder), exact)
            result |= {"device": name, **measure(options.repeats, build)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
