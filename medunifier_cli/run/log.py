"""Write `log.jsonl`, the numbers of a run: one line of JSON per event (training step or validation)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from medunifier_cli.files import append_line, read_lines, write_text


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
            for line in read_lines(path)
            if line["step"] < step or (line["step"] == step and (validated or line["event"] != "valid"))
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line; closed each time, so that a kill loses nothing that was logged."""
        append_line(self.path, json.dumps({"event": event, "step": step, **values}))
