"""Write `log.jsonl`, the numbers of a run: one line of JSON per event (training step or validation)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from medunifier_cli.files import append_line, write_text
from medunifier_cli.parsing import Count
from medunifier_cli.run.lines import whole_lines


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


class Log:
    """`log.jsonl`, cut back to the checkpoint that a run resumes from.

    Args:
        path: the file.
        step: steps done; lines of later steps and an incomplete last line are removed.
        validated: False removes the validation of the last step too, which is then repeated.
    """

    def __init__(self, path: Path, step: int, validated: bool = True) -> None:
        self.path = path
        kept = [
            line
            for line in read_log(path)
            if line["step"] < step or (line["step"] == step and (validated or line["event"] != "valid"))
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line; closed each time, so that a kill loses nothing that was logged."""
        append_line(self.path, json.dumps({"event": event, "step": step, **values}))
