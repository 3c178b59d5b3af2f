"""Training on cores that somebody else uses too: threads that wait passively against OpenMP's default.

Steps of demo.yaml (forward, backward, AdamW) in processes of their own, one alone and two beside each other
on the same cores, with each way of waiting. The ways alternate, and the median of the repeats counts. The
loss after the first steps must be equal to the last bit: how threads wait changes no number.

    python benchmarks/threads.py [--seconds 10] [--repeats 3] [--threads 2] [--batch 32] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

WAYS = ("default", "passive")
CHECKED_STEP = 2
"""Step whose loss is compared; the clock starts after it."""


def train(options: argparse.Namespace) -> None:
    """Train for some seconds once a line comes on stdin; prints pairs a second and the loss."""
    import torch

    from medunifier_cli.data.contract import Batch, PackedText
    from medunifier_cli.objectives.pretraining import PretrainingLoss, build_model
    from medunifier_cli.recipe.load import load_recipe

    torch.set_num_threads(options.threads)
    small = ["model.vit.depth=1", "model.qformer.layers=1", "model.generator.base_width=32"]
    recipe, vocabulary = load_recipe("demo", small if options.tiny else []), 1000
    torch.manual_seed(0)
    loss = PretrainingLoss(build_model(recipe, vocabulary), vocabulary - 1).train()
    size, edge, place = options.batch, recipe.data.image_size, torch.arange(options.batch)
    texts = [[2, *torch.randint(5, vocabulary - 1, (3 + i % 18,)).tolist(), 3] for i in range(size)]
    image = torch.randint(0, 256, (size, 1, edge, edge)).to(torch.uint8)
    batch = Batch([str(i) for i in range(size)], image, PackedText.of(texts), place, place * 0 - 1, place)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-4, fused=True)
    print("ready", flush=True)
    sys.stdin.readline()
    step, start, checked = 0, 0.0, 0.0
    while step <= CHECKED_STEP or time.perf_counter() - start < options.seconds:
        optimizer.zero_grad(set_to_none=True)
        total = loss(batch)[0]["total"]
        total.backward()
        optimizer.step()
        step += 1
        if step == CHECKED_STEP:
            start, checked = time.perf_counter(), float(total.detach())
    rate = size * (step - CHECKED_STEP) / (time.perf_counter() - start)
    print(json.dumps({"rate": rate, "loss": checked.hex()}), flush=True)


def run(way: str, processes: int, options: argparse.Namespace) -> tuple[float, set[str]]:
    """Pairs a second of the slowest of some processes that train at the same time, and their losses."""
    environment = {
        name: value for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    }  # fmt: skip
    if way == "passive":
        environment["OMP_WAIT_POLICY"] = "passive"
    command = [
        sys.executable, str(Path(__file__).resolve()), "--train", "--seconds", str(options.seconds),
        "--threads", str(options.threads), "--batch", str(options.batch),
        *(["--tiny"] if options.tiny else []),
    ]  # fmt: skip
    started: list[subprocess.Popen[str]] = [
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(processes)
    ]
    for one in started:
        assert one.stdout is not None
        if one.stdout.readline() != "ready\n":
            raise SystemExit("a training process ended before it began; its error is above")
    for one in started:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    found: list[dict[str, Any]] = [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]
    return min(float(one["rate"]) for one in found), {str(one["loss"]) for one in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--train", action="store_true", help="be one of the processes")
    parser.add_argument(
        "--tiny", action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )  # fmt: skip
    options = parser.parse_args()
    if options.train:
        train(options)
        return
    if options.tiny:
        options.seconds, options.repeats, options.batch = 0.1, 1, 4

    rates: dict[tuple[str, int], list[float]] = {}
    losses: set[str] = set()
    for _ in range(options.repeats):
        for processes in (1, 2):
            for way in WAYS:
                rate, seen = run(way, processes, options)
                rates.setdefault((way, processes), []).append(rate)
                losses |= seen
    found = {key: median(values) for key, values in rates.items()}
    for (way, processes), rate in found.items():
        beside = "alone" if processes == 1 else "beside another"
        print(f"{way}, {beside}: {rate:.1f} pairs/s of {[round(one, 1) for one in rates[way, processes]]}")
    print(
        json.dumps(
            {
                "benchmark": "threads", "threads": options.threads, "cores": os.cpu_count(),
                "load_before": round(os.getloadavg()[0], 1),
                **{
                    f"pairs_per_second_{way}_{'alone' if n == 1 else 'beside'}": round(rate, 2)
                    for (way, n), rate in found.items()
                },
                "ratio_alone": round(found["passive", 1] / found["default", 1], 2),
                "ratio_beside": round(found["passive", 2] / found["default", 2], 2),
                "same_numbers": len(losses) == 1,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
