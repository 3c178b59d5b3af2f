"""Cached sampling of both priors against full recomputation, one forward pass and a masked prior; 2 threads.

512 codes, 256 channels, 4 blocks of 4 layers; top 8x8 with causal attention, bottom 16x16 given the top. Full
recomputation costs the same at every position (the shape of its input never changes), so it is timed on a
stated number of positions, the choice of a code included, and scaled to all 64 and 256. The methods take
turns; medians are reported. The masked prior is that of recipes/prior-masked.yaml over the same maps, both
without text; it is timed at batch 32, in turns with cached sampling. On a shared machine, threads that wait
for each other make the forward pass and recomputation look slower than they are; so the ratio of CPU seconds,
cached to one forward pass, is printed.

    python benchmarks/sampling.py [--rounds 3] [--positions 1] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = (
    "passive"  # before torch: a thread that waits must not count as one that works
)

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medunifier_cli.model.sampling import Draws
from medunifier_cli.prior.masked.prior import MaskedPrior
from medunifier_cli.prior.masked.shape import MaskedShape
from medunifier_cli.prior.pixelsnail import PixelSnail
from medunifier_cli.prior.sampling import Inputs, sample
from medunifier_cli.prior.shape import PriorShape
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from tests.reference.slow_sampling import slow_sample

THREADS, SIZES = 2, {"top": (8, 8), "bottom": (16, 16)}
ENOUGH = 60.0
"""Seconds after which a batch takes no further round."""


class Case:
    """One prior and one batch."""

    def __init__(self, prior: PixelSnail, size: tuple[int, int], batch: int) -> None:
        self.prior, self.size, self.batch = prior, size, batch
        self.codes = torch.randint(512, (batch, *size))
        self.top_codes = torch.randint(512, (batch, 8, 8)) if prior.config.top_codes else None

    def forward(self) -> None:
        """One pass over the whole map, all positions at once."""
        with torch.inference_mode():
            self.prior(self.codes, top_codes=self.top_codes)

    def cached(self) -> None:
        """All positions, each at the cost of one."""
        sample(self.prior, self.size, range(self.batch), Draws(0), Inputs(top_codes=self.top_codes))

    def recomputed(self, positions: int) -> None:
        """The first positions, a forward pass for each."""
        numbers = range(self.batch)
        slow_sample(self.prior, self.size, numbers, 0, top_codes=self.top_codes, positions=positions)


def masked_prior(tiny: bool) -> MaskedPrior:
    """The recipe's, with random weights: what it draws costs the same."""
    sizes = vars(load_recipe("prior-masked", (), PriorRecipe).prior.masked)
    if tiny:
        sizes = {**sizes, "width": 16, "layers": 1, "heads": 2}
    return MaskedPrior(MaskedShape(**sizes, codes=512, top_edge=SIZES["top"][0])).eval()


def seconds(run: Callable[..., None], *arguments: int) -> tuple[float, float]:
    """Wall-clock and CPU time of one call."""
    start, start_cpu = time.perf_counter(), time.process_time()
    run(*arguments)
    return time.perf_counter() - start, time.process_time() - start_cpu


def measure(
    priors: dict[str, PixelSnail], batch: int, rounds: int, positions: int, masked: MaskedPrior | None = None
) -> dict[str, float]:
    """Median seconds of one batch, both priors together: `forward`, `cached`, `recomputed` (scaled), and the
    first two in CPU seconds as `forward cpu`, `cached cpu`; `masked` where there is such a prior."""
    total: dict[str, float] = defaultdict(float)
    cases = {level: Case(prior, SIZES[level], batch) for level, prior in priors.items()}
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case in cases.values():
        case.forward()
    start, done = time.perf_counter(), 0
    while done < rounds and time.perf_counter() - start < ENOUGH:
        for level, case in cases.items():
            for kind, run in (("forward", case.forward), ("cached", case.cached)):
                wall, cpu = seconds(run)
                times[level, kind].append(wall)
                times[level, f"{kind} cpu"].append(cpu)
            wall, _ = seconds(case.recomputed, positions)
            times[level, "recomputed"].append(wall * case.codes[0].numel() / positions)
        if masked is not None:
            wall, _ = seconds(lambda: masked.sample(SIZES["top"][0], range(batch), Draws(0), None))
            times["both", "masked"].append(wall)
        done += 1
    for (level, kind), values in times.items():
        total[kind] += statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}, {done} rounds"
        print(f"batch {batch:2d}  {level:6s} {kind:11s} {statistics.median(values):9.2f} s  ({spread})")
    return total


def main() -> None:
    """Print all times, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--positions", type=int, default=1, help="positions of full recomputation that are timed"
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )
    args = parser.parse_args()
    torch.set_num_threads(1 if args.tiny else THREADS)
    torch.manual_seed(0)
    config = PriorShape()
    if args.tiny:
        config = PriorShape(channels=16, blocks=1, layers=1, top_layers=1)
        args.rounds = 1
    priors = {
        "top": PixelSnail(config).eval(),
        "bottom": PixelSnail(replace(config, attention=False, top_codes=512)).eval(),
    }
    small = measure(priors, 8, args.rounds, args.positions)
    large = measure(priors, 32, args.rounds, args.positions, masked_prior(args.tiny))
    result = {
        "ratio_batch8": round(small["recomputed"] / small["cached"], 1),
        "ratio_batch32": round(large["recomputed"] / large["cached"], 1),
        "over_one_forward": round(large["cached"] / large["forward"], 2),
        "recomputation": f"timed on {args.positions} of 64 and {args.positions} of 256 positions, scaled",
        "cpu_over_one_forward": round(large["cached cpu"] / large["forward cpu"], 2),
        "samples_per_second_batch32": round(32 / large["cached"], 2),
        "masked_samples_per_second_batch32": round(32 / large["masked"], 2),
        "masked_over_pixelsnail": round(large["cached"] / large["masked"], 1),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
