"""The table of a campaign and the list of its failures: printed, and kept in docs/reliability.md."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import platform
import re
from collections.abc import Sequence

from tests.campaign.record import ROOT, Book, Outcome

PAGE = ROOT / "docs" / "reliability.md"
MARKS = ("<!-- table -->", "<!-- end of table -->")
PARTS = {
    "kills": "killed at any moment, the same command ends bit-equal",
    "signals": "a signal ends any phase with 75, then the same command ends bit-equal",
    "disk": "a full disk is one line; with room the same command ends bit-equal",
    "groups": "ranks agree, die together, and say who; jobs are requeued",
    "fuzz": "one line of `mu`, a skip or a good result comes out of any file",
}
"""Promise that each part of a campaign tries."""
COUNTED = {
    "kills": "SIGKILLs",
    "signals": "signals",
    "disk": "full disks",
    "groups": "groups",
    "fuzz": "inputs",
}


def show(book: Book, given: argparse.Namespace) -> bool:
    """Print the failures and the table, write the page if asked to; True where anything failed."""
    outcomes = book.outcomes()
    failed = failures(outcomes)
    for line in failed:
        print(line)
    print(table(outcomes))
    if given.write:
        write(outcomes, given.seed)
    return bool(failed)


def table(outcomes: Sequence[Outcome]) -> str:
    """promise | test | tries | failures, as Markdown."""
    rows: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes:
        row = rows.setdefault((outcome.part, outcome.test), [0, 0])
        row[0] += outcome.tries
        row[1] += len(outcome.failures)
    lines = ["| promise | test | tries | failures |", "|---|---|---|---|"]
    for part, promise in PARTS.items():
        of_part = {test: row for (own, test), row in sorted(rows.items()) if own == part}
        first = promise
        for test, (tries, failed) in of_part.items():
            lines.append(f"| {first} | {test} | {tries:,} | {failed:,} |")
            first = "same"
        if of_part:
            tries, failed = (sum(row[i] for row in of_part.values()) for i in (0, 1))
            lines.append(f"| | **all {COUNTED[part]}** | **{tries:,}** | **{failed:,}** |")
    return "\n".join(lines)


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Failing trials, by the name that repeats each; of fuzzed inputs a line for each kind and place."""
    lines = [f"{o.trial}: {'; '.join(o.failures)[:600]}" for o in outcomes if o.failures and o.part != "fuzz"]
    kinds: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for outcome in outcomes:
        for failure in outcome.failures if outcome.part == "fuzz" else []:
            kind = re.sub(r" \(input.*", "", failure)
            kinds[outcome.test, kind].append(f"{outcome.trial}, {failure[len(kind) + 1 :].strip('()')}")
    lines += [
        f"fuzz, {test}: {kind}: {len(inputs)} times, first {inputs[0]}"
        for (test, kind), inputs in sorted(kinds.items())
    ]
    return lines


def write(outcomes: Sequence[Outcome], seed: int) -> None:
    """Replace the table of docs/reliability.md."""
    about = (
        f"{datetime.date.today()}, seed {seed}, {os.cpu_count()} CPU cores, no GPU, Python "
        f"{platform.python_version()} on {platform.system()}, PyTorch {_version('torch')}."
    )
    failed = failures(outcomes)
    listed = "\n".join(["", "Failures:", "", *(f"- {line}" for line in failed), ""]) if failed else ""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(
        f"{before}{MARKS[0]}\n\n{about}\n\n{table(outcomes)}\n{listed}\n{MARKS[1]}{after}", encoding="utf-8"
    )


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)
