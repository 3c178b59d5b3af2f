"""Compare two runs bit for bit: the logs but for their seconds, and every tensor of the last checkpoint.

What a change that must not alter numbers is shown with: train once before it and once after, on one machine.

python experiments/same_run.py BEFORE AFTER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.run.log import read_log, without_times


def log_of(run: Path) -> list[dict[str, Any]]:
    """All lines, less the time each step took."""
    return [without_times(line) for line in read_log(run / "log.jsonl")]


def differences(before: Path, after: Path) -> list[str]:
    """What differs, one line each; nothing where the runs are the same."""
    lines = []
    one, other = log_of(before), log_of(after)
    if len(one) != len(other):
        lines.append(f"log.jsonl: {len(one)} and {len(other)} lines")
    first = next((pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]), None)
    if first is not None:
        lines.append(f"log.jsonl: first differs at {first[0]['event']} step {first[0]['step']}")
    steps = [store.steps(run / "checkpoints") for run in (before, after)]
    if not steps[0] or not steps[1] or steps[0][-1] != steps[1][-1]:
        return [*lines, f"last checkpoints: {steps[0][-1:]} and {steps[1][-1:]}"]
    last = [store.newest(run / "checkpoints") for run in (before, after)]
    if last[0] is None or last[1] is None:
        return [*lines, "a checkpoint is damaged"]
    for file in sorted(last[0].tensors.keys() | last[1].tensors.keys()):
        tensors = [checkpoint.tensors.get(file, {}) for checkpoint in last if checkpoint is not None]
        for name in sorted(tensors[0].keys() | tensors[1].keys()):
            pair = [named.get(name) for named in tensors]
            if pair[0] is None or pair[1] is None or not torch.equal(pair[0], pair[1]):
                lines.append(f"{file}: {name} differs")
    return lines


def main() -> None:
    """Print the differences; exit with 1 where there are any."""
    before, after = map(Path, sys.argv[1:3])
    found = differences(before, after)
    if found:
        print("\n".join(found))
        sys.exit(1)
    lines = log_of(before)
    print(json.dumps({"log_lines": len(lines), "last_step": lines[-1]["step"], "equal": True}))


if __name__ == "__main__":
    main()
