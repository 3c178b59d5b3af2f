"""What a card does, in under eight minutes: parity with the CPU, rates, memory, parts, resume, sampling.

Each section runs in a process of its own with a limit in seconds, so that one that fails or hangs leaves the
others' numbers. Where there are several cards, steps run on one and on all of them. Steps are full.yaml's
with random weights, 64 pairs a card: `live` with the image encoder, `cached` with its features in the batch,
`compiled` live with `train.compile`.

    python benchmarks/gpu.py [--cards N] [--batch 64] [--only live parity ...]
    python benchmarks/gpu.py --device cpu --tiny      # the same code, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WHOLE = 470.0
"""Seconds that all sections together may take."""
PATIENCE = 40
"""Times as long as all limits on a CPU, where the sections only have to run."""
SHORTEST = 5.0
"""Seconds with less than which no section is begun."""
IMAGES = {"cpu": 64, "cuda": 1000}
RATES = ("samples_per_s", "spread", "peak_gib", "tflop_per_sample", "utilisation")
OTHERS = {
    "parity": tuple(f"{what}_{how}" for how in ("fp32", "bf16") for what in ("loss", "gradient", "within")),
    "parts": ("largest_parts",),
    "resume": ("killed_at", "resumed_bit_equal", "resumed_difference", "resumed_within"),
    "sampling": ("sampled_images", "seconds_of_codes", "seconds_of_decoding"),
}
"""Section -> keys of its numbers."""


class Steps(NamedTuple):
    """A section that times steps."""

    kind: str
    """`live`, `cached` or `compiled`, see `card.training.Training`."""
    limit: float
    """Seconds, on each number of ranks."""
    overrides: tuple[str, ...] = ()
    """Of the recipe."""


STEPS = {"live": Steps("live", 60), "cached": Steps("cached", 45), "compiled": Steps("compiled", 75)}
LIMITS = {"parity": 45.0, "parts": 55.0, "resume": 90.0, "sampling": 60.0}


def measure(section: str, ranks: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One section, in this process."""
    import torch

    on_gpu = options.device == "cuda"
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    if not on_gpu:
        torch.set_num_threads(1)
    if section in STEPS:
        from card.training import rates

        steps, settings = STEPS[section], {"batch": options.batch, "tiny": options.tiny}
        found = rates(steps.kind, (*steps.overrides, *precision(options)), ranks, settings, folder)
        return {f"{name}_{ranks}_{section}": found[name] for name in RATES}
    if section == "parity":
        from card.parity import compare

        return compare(device)
    if section == "parts":
        from card.training import TINY, Sizes, Training, largest_parts

        sizes = TINY if options.tiny else Sizes()
        training = Training(options.batch, sizes, "live", folder, precision(options))
        return {"largest_parts": largest_parts(training, 1 if options.tiny else 3)}
    if section == "resume":
        from card import resume

        return resume.compare(folder, ranks, "bf16" if on_gpu else "no", on_gpu)
    from card.sampling import seconds

    return seconds(device, 8 if options.tiny else IMAGES[options.device], options.tiny)


def precision(options: argparse.Namespace) -> tuple[str, ...]:
    """A CPU computes bf16 so slowly that it is left out there."""
    return () if options.device == "cuda" else ("train.precision=no", "train.threads=1")


def plan(cards: int, only: list[str]) -> Iterator[tuple[str, int, float]]:
    """Section, ranks and limit; what most depends on comes first."""
    for section in ("parity", *STEPS, "resume", "sampling", "parts"):
        if only and section not in only:
            continue
        for ranks in (1, cards) if section in STEPS and cards > 1 else (1,):
            limit = STEPS[section].limit if section in STEPS else LIMITS[section]
            yield section, cards if section == "resume" else ranks, limit


def keys_of(section: str, ranks: int) -> tuple[str, ...]:
    """Keys that a section gives."""
    return tuple(f"{name}_{ranks}_{section}" for name in RATES) if section in STEPS else OTHERS[section]


def run(section: str, ranks: int, limit: float, options: argparse.Namespace) -> dict[str, Any] | str:
    """One section in a process of its own: its numbers, or why there are none."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--section", section, "--ranks", str(ranks),
        "--device", options.device, "--batch", str(options.batch), *(["--tiny"] if options.tiny else []),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the ranks and runs that it started
        process.communicate()
        return f"not done within {limit:.0f} s"
    if process.returncode:
        return f"ended with {process.returncode}; its error is above"
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def all_sections(cards: int, options: argparse.Namespace) -> dict[str, Any]:
    """Every section one after the other: all keys, None where a section gave no number, and why."""
    result: dict[str, Any] = {"failed": {}}
    begun, slower = time.monotonic(), PATIENCE if options.device == "cpu" else 1
    for section, ranks, limit in plan(cards, options.only):
        left = slower * WHOLE - (time.monotonic() - begun)
        most = min(slower * limit, left)
        found = run(section, ranks, most, options) if left > SHORTEST else "no time was left for it"
        if isinstance(found, str):
            result["failed"][f"{section}_{ranks}"] = found
            found = dict.fromkeys(keys_of(section, ranks))
        print(f"{section}, {ranks} rank{'s' * (ranks > 1)}: {found}", flush=True)
        result |= found
    return result


def arguments() -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cards", type=int, default=0, help="cards to use; 0 for all")
    parser.add_argument("--batch", type=int, default=64, help="pairs of each card")
    parser.add_argument("--only", nargs="+", choices=(*STEPS, *LIMITS), default=[], metavar="SECTION")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that this file runs")
    parser.add_argument("--section", choices=(*STEPS, *LIMITS), help="measure this section in this process")
    parser.add_argument("--ranks", type=int, default=1, help="of the section")
    options = parser.parse_args()
    if options.tiny:
        options.batch = 4
    return options


def main() -> None:
    """All sections, and their numbers as one JSON line; or one line that says that there is no GPU."""
    options = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.section:
        sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.section, options.ranks, options, Path(folder))))
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU is there; `--device cpu --tiny` shows that every part runs")
        print(json.dumps({"benchmark": "gpu", "device": None}))
        return
    on_gpu = options.device == "cuda"
    cards = options.cards or (torch.cuda.device_count() if on_gpu else 1)
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    result = {"benchmark": "gpu", "device": name, "cards": cards, "batch": options.batch}
    print(json.dumps(result | all_sections(cards, options)))


if __name__ == "__main__":
    main()
