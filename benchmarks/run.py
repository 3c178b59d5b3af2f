"""Run the benchmarks one after the other and write BENCHMARKS.md: hardware, date, a row for each key.

Each runs in a process of its own, with arguments that two busy cores get through in minutes and a limit in
seconds. The page is written after each one, so a stopped call leaves what it measured, and `--missing`
resumes it.

    python benchmarks/run.py [--only growth step ...] [--missing] [--tiny] [--page BENCHMARKS.md]
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import OTHERS, RATES, STEPS  # noqa: E402
from benchmarks.page.hardware import hardware  # noqa: E402
from benchmarks.page.write import Ran, page, section, sections_of  # noqa: E402


class Benchmark(NamedTuple):
    """How a file of this folder is called here."""

    arguments: str = ""
    limit: float = 1800.0
    """Seconds."""
    keys: tuple[str, ...] = ()
    """Rows that are on the page without a GPU too."""


BENCHMARKS = {
    "decoding": Benchmark("--images 1 --lengths 3"),
    "deterministic": Benchmark(keys=("ratio", "spread", "median_s", "repeats_bit_for_bit")),
    "features": Benchmark("--images 16 --batch 8 --steps 1 --rounds 2"),
    "gpu": Benchmark(
        keys=(
            *(f"{rate}_1_{kind}" for kind in STEPS for rate in RATES),
            *(key for keys in OTHERS.values() for key in keys),
        )
    ),
    "growth": Benchmark(),
    "loader": Benchmark("--images 256 --small 2000 --rounds 3"),
    "objectives": Benchmark("--batch 2 --repeats 1 --threads 1"),
    "prepare": Benchmark("--images 36 --records 5000 --kills 3 --rounds 1"),
    "ranking": Benchmark("--pairs 3000 --large 8000 --rows 50"),
    "sampling": Benchmark("--rounds 1"),
    "step": Benchmark(),
    "threads": Benchmark("--seconds 5 --repeats 1"),
    "tig": Benchmark("--batch 2 --repeats 1 --threads 1"),
}
"""Every benchmark of this folder."""


def run(name: str, tiny: bool) -> Ran:
    """One benchmark: its JSON line, or why there is none."""
    words = ["--tiny"] if tiny else BENCHMARKS[name].arguments.split()
    command = " ".join(["python", f"benchmarks/{name}.py", *words])
    print(f"== {command}", flush=True)
    begun, limit = time.monotonic(), BENCHMARKS[name].limit
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *words], stdout=subprocess.PIPE,
            text=True, encoding="utf-8", timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ran(command, limit, None, f"it was stopped after {limit:,.0f} s")
    taken = time.monotonic() - begun
    print(done.stdout, end="", flush=True)
    if done.returncode:
        return Ran(command, taken, None, f"it ended with {done.returncode}")
    try:
        return Ran(command, taken, json.loads(done.stdout.splitlines()[-1]), "")
    except (IndexError, json.JSONDecodeError):
        return Ran(command, taken, None, "its last line is no JSON")


def main() -> None:
    """Run what was asked for; the exit code is 1 if one of them has no result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--missing", action="store_true", help="leave out those that the page has")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; the numbers mean nothing")
    parser.add_argument("--page", type=Path, default=ROOT / "BENCHMARKS.md", help="file to write")
    options = parser.parse_args()
    text = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
    sections, failed, where = sections_of(text), False, hardware()
    for name in options.only:
        if options.missing and name in sections:
            continue
        ran = run(name, options.tiny)
        failed = failed or ran.result is None
        today = datetime.date.today()
        when = f"{today.day} {today:%B %Y}"
        sections[name] = section(name, ran, when, where, BENCHMARKS[name].keys)
        options.page.write_text(page(sections, BENCHMARKS), encoding="utf-8")
    print(options.page)
    sys.exit(failed)


if __name__ == "__main__":
    main()
