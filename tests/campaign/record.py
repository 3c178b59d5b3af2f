"""What was tried and what came of it: a file of JSON lines that a stopped campaign goes on from, and the table."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """One trial, or one batch of fuzzed inputs."""

    part: str
    """kills, signals, disk, groups or fuzz."""
    test: str
    """Row of the table."""
    trial: str
    """What to give to `--again`."""
    tries: int = 1
    failures: list[str] = field(default_factory=list)
    """What went wrong, one line each."""
    seconds: float = 0.0


class Book:
    """The outcomes in one work folder; those of other sources of the package are set aside."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.path = work / "outcomes.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        mark, now = work / "sources", sources_hash()
        if self.path.exists() and (not mark.exists() or mark.read_text() != now):
            self.path.rename(work / f"outcomes-{int(time.time())}.jsonl")
        mark.write_text(now)
        self.done = {outcome.trial for outcome in self.outcomes()}

    def outcomes(self) -> list[Outcome]:
        """All so far."""
        lines = self.path.read_text().split("\n") if self.path.exists() else []
        return [Outcome(**json.loads(line)) for line in lines if line.endswith("}")]

    def add(self, outcome: Outcome) -> None:
        """Append one; several processes may do so at once."""
        line = json.dumps(asdict(outcome)) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def sources_hash() -> str:
    """Hash of the package, the plugins and the campaign itself."""
    digest = hashlib.sha256()
    for folder in ("medunifier_cli", "plugins", "recipes", "tests/campaign"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml", ".c"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def table(outcomes: Iterable[Outcome], promises: dict[str, str]) -> str:
    """promise | test | tries | failures, as Markdown."""
    rows: dict[str, list[Any]] = {}
    for outcome in outcomes:
        row = rows.setdefault(outcome.test, [outcome.part, 0, 0])
        row[1] += outcome.tries
        row[2] += len(outcome.failures)
    order = ("kills", "signals", "disk", "groups", "fuzz")
    lines = ["| promise | test | tries | failures |", "|---|---|---|---|"]
    for test, (part, tries, failures) in sorted(rows.items(), key=lambda item: (order.index(item[1][0]), item[0])):
        lines.append(f"| {promises.get(part, part)} | {test} | {tries:,} | {failures:,} |")
    total = [sum(row[i] for row in rows.values()) for i in (1, 2)]
    lines.append(f"| | all | {total[0]:,} | {total[1]:,} |")
    return "\n".join(lines)


def failures(outcomes: Iterable[Outcome]) -> list[str]:
    """One line for each failing trial: how to repeat it, and what went wrong."""
    return [f"{o.trial}: {'; '.join(o.failures)[:500]}" for o in outcomes if o.failures]
