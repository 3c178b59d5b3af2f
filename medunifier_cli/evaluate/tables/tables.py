"""List the numbers of several runs in one table, and lay out the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medunifier_cli.checkpoint.lineage import made_from
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.render import interval, number, render
from medunifier_cli.evaluate.results import Metric, read_results
from medunifier_cli.evaluate.tables.beside_paper import Section
from medunifier_cli.run.record import Run

WORDS = 3
"""Columns of words in the rows of runs: task, data, metric."""
PAPER_WORDS = 2
"""The same in the paper's tables: method, measure."""


def rows_of(runs: Sequence[Run], intervals: bool = False) -> list[list[str]]:
    """A header, then one row per metric of any run: task, data, metric, baseline, one column per run.

    Results of runs made from one of them are in its column, with their name after the task.

    Args:
        intervals: put 95 % intervals into columns of their own (for CSV) instead of after the values.

    Raises:
        CheckpointError: a run without results.
    """
    per_run = 3 if intervals else 1
    header = ["task", "data", "metric", "baseline"]
    for run in runs:
        name = run.folder.name
        header += [name, f"{name} low", f"{name} high"] if intervals else [name]
    rows: dict[tuple[str, str, str], list[str]] = {}
    for column, run in enumerate(runs):
        for result in _results(run):
            for entry in result["metrics"]:
                metric = Metric.from_json(entry)
                key = (result["task"], f"{result['dataset']}/{result['split']}", metric.title)
                row = rows.setdefault(key, [""] * (1 + per_run * len(runs)))
                row[0] = number(metric.baseline)
                start = 1 + per_run * column
                row[start : start + per_run] = _cells(metric, intervals)
    return [header, *([*key, *row] for key, row in rows.items())]


def render_sections(sections: Sequence[Section], form: str) -> str:
    """The paper's tables one below the other; in CSV as one table with the number of each in front."""
    if form == "csv":
        header = ["table", *sections[0].rows[0]]
        numbers = {section.title: section.title.split(":")[0] for section in sections}
        return render([header, *([numbers[s.title], *row] for s in sections for row in s.rows[1:])], form)
    mark = "### " if form == "markdown" else ""
    return "\n\n".join(f"{mark}{s.title}\n\n{render(s.rows, form, PAPER_WORDS)}" for s in sections)


def _results(run: Run) -> list[Mapping[str, Any]]:
    results: list[Mapping[str, Any]] = [*read_results(run.results)]
    for other in made_from(run):
        own = f" ({other.folder.name})"
        results += [result | {"task": result["task"] + own} for result in read_results(other.results)]
    if not results:
        raise CheckpointError(f"{run.folder}: no results yet; run `mu retrieve` or `mu zeroshot` first")
    return results


def _cells(metric: Metric, intervals: bool) -> list[str]:
    value = number(metric.value, "-")
    if intervals:
        return [value, number(metric.low), number(metric.high)]
    ends = interval(metric.low, metric.high)
    return [f"{value} ({ends})" if ends else value]
