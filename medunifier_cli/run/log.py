"""Write `log.jsonl`, the numbers of a run: one line of JSON per event (training step or validation)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from medunifier_cli.files import append_line, write_text
from medunifier_cli.parsing import Count
from medunifier_cli.run.lines import whole_lines

TIMES = ("seconds", "samples_per_s", "waiting", "peak_gib", "mfu")
"""Numbers of a line that tell of the machine and what else it does, and differ between runs that are equal:
`seconds` of the step alone; of the steps since the last line `samples_per_s` over all ranks, `waiting`, the
share of their time in which rank 0 waited for its data, and `mfu`, model FLOP utilisation, the share of what
the card's data sheet promises for bf16; and `peak_gib`, the most memory so far of rank 0, GiB of its card, or
of its process on a CPU."""


class LogLine(TypedDict):
    """What every line of `log.jsonl` has besides its numbers."""

    event: str
    """`train`, `valid` or another kind of measurement."""
    step: Count
    """Optimiser steps done."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; damaged ones are reported on stderr and left out.

    Raises:
        DataError: the file cannot be read at all.
    """
    return whole_lines(path, LogLine)


def without_times(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line without the numbers of `TIMES`, by which runs can be compared."""
    return {name: value for name, value in line.items() if name not in TIMES}


class Log:
    """`log.jsonl`, cut back to the checkpoint that a run resumes from.

    Args:
        path: the file.
        step: steps done; lines of later steps and an incomplete last line are removed.
        validated: False removes the validation of the last step too, which is then repeated.
    """

    def __init__(self, path: Path, step: int, validated: bool = True) -> None:
        self.path = path
        lines = read_log(path)

        def is_kept(line: Mapping[str, Any]) -> bool:
            return line["step"] < step or (line["step"] == step and (validated or line["event"] != "valid"))

        kept = list(filter(is_kept, lines))
        self.cut = frozenset((line["event"], line["step"]) for line in lines if not is_kept(line))
        """Event and step of the lines that were removed: what they tell of is done again."""
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line; closed each time, so that a kill loses nothing that was logged."""
        append_line(self.path, json.dumps({"event": event, "step": step, **values}))
