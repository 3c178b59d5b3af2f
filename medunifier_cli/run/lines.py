"""Read files of JSON lines that a program appends to, and that a kill, a full disk or an editor may damage.

The line that a killed process was writing is expected; any other line that cannot be read is reported on
stderr, and left out, because the rest of the file is as good as before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medunifier_cli.errors import MuError
from medunifier_cli.parsing import checked, parse_json, read_bytes
from medunifier_cli.terminal.say import say


def whole_lines(path: Path, kind: type[Any]) -> list[dict[str, Any]]:
    """All lines that are JSON objects of the declared type, in their order; none if there is no file.

    Args:
        kind: a `TypedDict` that every line must fit; keys that it does not name are kept as they are.

    Raises:
        DataError: the file cannot be read at all.
    """
    if not path.exists():
        return []
    content = read_bytes(path)
    texts = content.split(b"\n")  # not `splitlines`: see `files.text_lines`
    lines: list[dict[str, Any]] = []
    damaged = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = parse_json(text, dict[str, Any], f"{path}:{number}")
            checked(line, kind, f"{path}:{number}")
        except MuError as error:
            if number < len(texts):  # the last one has no line end: its writer was killed
                damaged.append(str(error))
        else:
            lines.append(line)
    if damaged:
        others = f" and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
        say(f"{damaged[0]}: this line{others} is left out", always=True)
    return lines
