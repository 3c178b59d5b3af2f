"""TIG at the paper's sizes, forward and backward, beside ITC, ITM and ITG together.

Both sides are ours: the same batch, features and encoder; one builds TIG alone (it still reads the image and
the text once), the other the three other objectives. `share_of_objectives` is the first over the second.

    python benchmarks/tig.py [--repeats 5] [--threads 2] [--batch 8]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.objectives import build, flops, interleave, make_batch, peak_mib
from medunifier_cli.data.contract import Batch
from medunifier_cli.objectives.total import Objectives


def step(objectives: Objectives, batch: Batch) -> Callable[[], None]:
    """Forward and backward as one call."""

    def call() -> None:
        objectives.zero_grad(set_to_none=True)
        losses, _ = objectives(batch)
        losses["total"].backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batch, lengths = make_batch(options.batch)
    print(lengths)
    with_tig = build(batch, "objectives.itc=0.0", "objectives.itm=0.0", "objectives.itg=0.0")
    others = build(batch, "objectives.tig=0.0")
    calls = {"tig": step(with_tig, batch), "objectives": step(others, batch)}
    work = {name: flops(call) for name, call in calls.items()}
    memory = {name: peak_mib(call) for name, call in calls.items()}
    seconds = interleave(calls, options.repeats)
    shares = [a / b for a, b in zip(seconds["tig"], seconds["objectives"], strict=True)]
    generator = with_tig.model.generator
    result = {
        "benchmark": "tig",
        "share_of_objectives": round(median(seconds["tig"]) / median(seconds["objectives"]), 3),
        "flop_share": round(work["tig"] / work["objectives"], 3),
        "spread": [round(min(shares), 3), round(max(shares), 3)],
        "median_s": {name: round(median(s), 3) for name, s in seconds.items()},
        "peak_mib": {name: round(mib) for name, mib in memory.items()},
        "decoder_parameters": sum(p.numel() for p in generator.decoder.parameters()),
        "generator_parameters": sum(p.numel() for p in generator.parameters()),
        "batch": options.batch,
        "threads": options.threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
