"""One training step of full.yaml on a pretended GPU: waits, launches, bytes, memory, FLOP, predicted rate.

No GPU is needed: `medunifier_cli/pretended/` says how. The step is the real one: all objectives, backward
pass, clipping and AdamW, on 1 and on 4 pretended ranks, with the image encoder live and with its features
given.
What DistributedDataParallel adds (1.1 GiB of buckets, an exchange that the backward pass hides) is not in it.

    python benchmarks/step.py [--batch 64] [--ranks 1 4] [--tiny] [--places]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from objectives import NO_VIT, TINY, Sizes, make_batch  # noqa: E402

from medunifier_cli.data.contract import Batch  # noqa: E402
from medunifier_cli.pretended.step import dry_step  # noqa: E402
from medunifier_cli.recipe.load import load_recipe  # noqa: E402

TERA = 1e12


def measure(batch: Batch, sizes: Sizes, count: int, live: bool, places: bool = False) -> dict[str, float]:
    """A step of full.yaml on one of several ranks."""
    vit = () if live and not sizes.overrides else NO_VIT
    random = ["model.qformer.weights=random", "model.vit.weights=random"]
    recipe = load_recipe("full", [*random, *vit, *sizes.overrides])
    step = dry_step(recipe, sizes.vocabulary, batch, count, live)
    trace = step.trace
    if places:
        for (kind, where), times in Counter((t.kind, t.where) for t in trace.transfers).items():
            stops = any(t.blocking and t.where == where and t.kind == kind for t in trace.transfers)
            print(f"  {times} x {kind} {where}{', waited for' if stops else ''}")
    return {
        "blocking_transfers": step.blocking,
        "transfers": len(trace.transfers),
        "launches": len(trace.launches),
        "collectives": step.collectives,
        "gigabytes": round(sum(launch.bytes for launch in trace.launches) / 1e9, 3),
        "peak_gib": round(trace.peak / 2**30, 3),
        "tflop_per_sample": round(step.flop_per_pair / TERA, 4),
        "predicted_samples_per_s": round(step.pairs_per_s, 1),
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
            numbers = measure(batch, sizes, count, live, options.places)
            result |= {f"{key}_{count}_{name}": value for key, value in numbers.items()}
            print(f"{count} rank{'s' * (count > 1)}, {name}: {numbers}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
