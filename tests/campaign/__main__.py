"""`make campaign`: tries to break what README.md promises, and writes docs/reliability.md's table.

    python -m tests.campaign kills --tries 100 --seed 1
    python -m tests.campaign all --minutes 40 --seed 0
    python -m tests.campaign --again 'kills/1/17/fit-prior'

A campaign that was stopped resumes: the same command skips the trials that are in the work folder already.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tests.campaign import forked
from tests.campaign.record import ROOT, Book

PARTS = ("kills", "signals", "disk", "groups", "fuzz")
TRIES = {"kills": 400, "signals": 150, "disk": 180, "groups": 57, "fuzz": 100_000}
"""Trials of the full campaign; of kills one in two has more than one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="?", default="all", choices=["all", *PARTS, "table"])
    parser.add_argument(
        "--tries", type=int, default=0, help="trials of each part (default: the full campaign's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=0, help="start no trial after so many (default: no limit)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trials at the same time")
    parser.add_argument("--work", type=Path, default=ROOT / "campaign")
    parser.add_argument("--only", default="", help="trials whose name contains this")
    parser.add_argument(
        "--short", action="store_true", help="the minute of `make test`: a fixed set of trials"
    )
    parser.add_argument("--again", default="", help="repeat one trial, by its name in the list of failures")
    parser.add_argument("--write", action="store_true", help="write the table to docs/reliability.md")
    given = parser.parse_args()
    given.work = given.work.resolve()
    from tests.campaign import parts, report

    book = Book(given.work)
    if given.part != "table":
        forked.preload(given.work)
        deadline = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
        parts.run(given, book, PARTS if given.part == "all" else (given.part,), TRIES, deadline)
    failed = report.show(book, given)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
