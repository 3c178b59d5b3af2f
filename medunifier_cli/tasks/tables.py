"""What runs reached, side by side: every number comes from a result file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from medunifier_cli.errors import CheckpointError
from medunifier_cli.tasks.results import read_results
from medunifier_cli.train.record import Run

FORMATS = ("text", "markdown", "csv")


def rows_of(runs: Sequence[Run]) -> list[list[str]]:
    """A header, then one row per metric of any run: task, data, metric, floor, one column a run.

    Raises:
        CheckpointError: a run without results.
    """
    header = ["task", "data", "metric", "floor", *(run.folder.name for run in runs)]
    cells: dict[tuple[str, str, str], list[str]] = {}
    for column, run in enumerate(runs):
        results = read_results(run.results)
        if not results:
            raise CheckpointError(f"{run.folder}: no results yet; run `mu retrieve` or `mu zeroshot` first")
        for result in results:
            for metric in result["metrics"]:
                name = metric["name"] + (f" ({metric['unit']})" if metric["unit"] else "")
                key = (result["task"], f"{result['dataset']}/{result['split']}", name)
                row = cells.setdefault(key, ["", *[""] * len(runs)])
                row[0] = _number(metric["floor"], "")
                row[1 + column] = _number(metric["value"], "-")
    return [header, *([*key, *row] for key, row in cells.items())]


def render(rows: list[list[str]], form: str) -> str:
    """Rows as aligned text, a Markdown table or CSV."""
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().rstrip("\n")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        [_align(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    if form == "markdown":
        rule = ["-" * width if i < 3 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)


def _number(value: Any, absent: str) -> str:
    return absent if value is None else f"{value:.3f}"
