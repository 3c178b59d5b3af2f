"""What runs reached, side by side: every number comes from a result file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from medunifier_cli.checkpoint.lineage import made_from
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.results import read_results
from medunifier_cli.evaluate.tables.beside_paper import Section
from medunifier_cli.run.record import Run

FORMATS = ("text", "markdown", "csv")


def rows_of(runs: Sequence[Run], intervals: bool = False) -> list[list[str]]:
    """A header, then one row per metric of any run: task, data, metric, floor, one column a run.

    Results of runs made from one of them stand in its column, their task followed by their name.

    Args:
        intervals: 95 % intervals in columns of their own (for CSV) instead of beside the values.

    Raises:
        CheckpointError: a run without results.
    """
    per_run = 3 if intervals else 1
    header = ["task", "data", "metric", "floor"]
    for run in runs:
        name = run.folder.name
        header += [name, f"{name} low", f"{name} high"] if intervals else [name]
    cells: dict[tuple[str, str, str], list[str]] = {}
    for column, run in enumerate(runs):
        results = read_results(run.results)
        for other in made_from(run):
            own = f" ({other.folder.name})"
            results += [result | {"task": result["task"] + own} for result in read_results(other.results)]
        if not results:
            raise CheckpointError(f"{run.folder}: no results yet; run `mu retrieve` or `mu zeroshot` first")
        for result in results:
            for metric in result["metrics"]:
                name = metric["name"] + (f" ({metric['unit']})" if metric["unit"] else "")
                key = (result["task"], f"{result['dataset']}/{result['split']}", name)
                row = cells.setdefault(key, [""] * (1 + per_run * len(runs)))
                row[0] = _number(metric["floor"], "")
                start = 1 + per_run * column
                row[start : start + per_run] = _value(metric, intervals)
    return [header, *([*key, *row] for key, row in cells.items())]


def _value(metric: Mapping[str, Any], intervals: bool) -> list[str]:
    value, ends = _number(metric["value"], "-"), [metric.get("low"), metric.get("high")]
    if intervals:
        return [value, *(_number(end, "") for end in ends)]
    return [f"{value} ({ends[0]:.3f}-{ends[1]:.3f})" if None not in ends else value]


def render(rows: list[list[str]], form: str, words: int = 3) -> str:
    """Rows as aligned text, a Markdown table or CSV.

    Args:
        words: so many columns are aligned left, the others right.
    """
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().rstrip("\n")
    least = 3 if form == "markdown" else 0  # a rule of fewer dashes is none to some readers
    widths = [max(least, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = [
        [_align(cell, width, i < words) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    if form == "markdown":
        rule = ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def render_sections(sections: Sequence[Section], form: str) -> str:
    """The paper's tables one under the other; as CSV one table, with the number of each in front."""
    if form == "csv":
        head = ["table", *sections[0].rows[0]]
        number = {section.title: section.title.split(":")[0] for section in sections}
        return render([head, *([number[s.title], *row] for s in sections for row in s.rows[1:])], form)
    mark = "### " if form == "markdown" else ""
    return "\n\n".join(f"{mark}{s.title}\n\n{render(s.rows, form, words=2)}" for s in sections)


def _align(cell: str, width: int, word: bool) -> str:
    return cell.ljust(width) if word else cell.rjust(width)


def _number(value: Any, absent: str) -> str:
    return absent if value is None else f"{value:.3f}"
