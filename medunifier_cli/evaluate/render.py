"""Render rows as an aligned table, as Markdown, CSV or JSON; and numbers as cells of such rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from medunifier_cli.terminal.table import text_table

NARROWEST_RULE = 3
"""Characters of a Markdown column: some readers take a rule of fewer dashes for text."""


def number(value: float | None, absent: str = "", decimals: int = 3) -> str:
    """A number as a cell.

    Args:
        absent: the cell of a missing number.
    """
    return absent if value is None else f"{value:.{decimals}f}"


def interval(low: float | None, high: float | None, decimals: int = 3) -> str:
    """The ends of an interval as `0.123-0.456`; empty where there is none."""
    return "" if low is None or high is None else f"{low:.{decimals}f}-{high:.{decimals}f}"


def render(rows: Sequence[Sequence[object]], form: str, words: int = 1) -> str:
    """Rows in one of `terminal.output.FORMATS`, without a line break at the end.

    JSON is a list of objects, whose keys are the header's cells. A cell that is no text keeps its type there;
    so a number is one, and None is null.

    Args:
        rows: the first one is the header; all are of one length.
        words: number of columns, from the first, that hold words and are aligned to the left; the others
            hold numbers.
    """
    if form == "json":
        return _json(rows)
    if form == "csv":
        return _csv(rows)
    cells = [[_cell(cell) for cell in row] for row in rows]
    return _markdown(cells, words) if form == "markdown" else "\n".join(text_table(cells, words))


def for_programs(form: str) -> bool:
    """Whether a format is read by programs, which want each number alone and with all its digits."""
    return form in ("json", "csv")


def _cell(cell: object) -> str:
    if cell is None:
        return ""
    return number(cell) if isinstance(cell, float) else str(cell)


def _json(rows: Sequence[Sequence[object]]) -> str:
    header, *body = rows
    objects = [dict(zip(map(str, header), row, strict=True)) for row in body]
    return json.dumps(objects, indent=1, ensure_ascii=False)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().rstrip("\n")


def _markdown(rows: list[list[str]], words: int) -> str:
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(NARROWEST_RULE, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [
        " | ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)
