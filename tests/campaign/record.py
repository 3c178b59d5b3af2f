"""What was tried and what came of it: JSON lines, from which a campaign that was stopped resumes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
