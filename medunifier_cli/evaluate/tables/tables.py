"""List the numbers of several runs in one table, and lay out the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from medunifier_cli.checkpoint.lineage import made_from, of_these_weights
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.render import for_programs, interval, number, render
from medunifier_cli.evaluate.results import Metric, read_results
from medunifier_cli.evaluate.tables.beside_paper import Section
from medunifier_cli.run.record import Run

WORDS = 3
"""Columns of words in the rows of runs: task, data, metric."""
PAPER_WORDS = 2
"""The same in the paper's tables: method, measure."""


def rows_of(runs: Sequence[Run], intervals: bool = False) -> list[list[Any]]:
    """A header, then one row per metric of any run: task, data, metric, baseline, one column per run.

    Results of runs made from one of them are in its column, with their name after the task.

    Args:
        intervals: for programs: 95 % intervals in columns of their own instead of after the values, and
            numbers with all digits instead of text.

    Raises:
        CheckpointError: a run without results.
    """
    per_run = 3 if intervals else 1
    header = ["task", "data", "metric", "baseline"]
    for run in runs:
        name = run.folder.name
        header += [name, f"{name} low", f"{name} high"] if intervals else [name]
    rows: dict[tuple[str, str, str], list[Any]] = {}
    for column, run in enumerate(runs):
        for result in results_of(run):
            for entry in result["metrics"]:
                metric = Metric.from_json(entry)
                key = (result["task"], f"{result['dataset']}/{result['split']}", metric.title)
                baseline = metric.baseline if intervals else number(metric.baseline)
                row = rows.setdefault(key, [baseline, *[None if intervals else ""] * (per_run * len(runs))])
                if row[0] != baseline:  # of other data or another setting: none is that of all
                    row[0] = None if intervals else "differs"
                start = 1 + per_run * column
                row[start : start + per_run] = _cells(metric, intervals)
    return [header, *([*key, *row] for key, row in rows.items())]


def render_rows(runs: Sequence[Run], form: str) -> str:
    """All numbers of the runs; as text below a heading for each task and data set, so that lines are short.

    Raises:
        CheckpointError: a run without results.
    """
    rows = rows_of(runs, intervals=for_programs(form))
    if form != "text":
        return render(rows, form, WORDS)
    header, *body = rows
    grouped = [["metric", *header[WORDS:]]]
    for (task, data), members in groupby(body, key=lambda row: (row[0], row[1])):
        grouped.append([f"{task}, {data}", *[""] * (len(header) - WORDS)])
        grouped += [[f"  {row[2]}", *row[WORDS:]] for row in members]
    return render(grouped, form)


def render_sections(sections: Sequence[Section], form: str) -> str:
    """The paper's tables one below the other; for programs one table with the number of each in front."""
    if for_programs(form):
        header = ["table", *sections[0].rows[0]]
        numbers = {section.title: section.title.split(":")[0] for section in sections}
        body: list[list[Any]] = [[numbers[s.title], *row] for s in sections for row in s.rows[1:]]
        if form == "json":
            first = 1 + PAPER_WORDS
            body = [[*row[:first], *map(_parsed, row[first:])] for row in body]
        return render([header, *body], form)
    mark = "### " if form == "markdown" else ""
    return "\n\n".join(f"{mark}{s.title}\n\n{render(s.rows, form, PAPER_WORDS)}" for s in sections)


def results_of(run: Run) -> list[Mapping[str, Any]]:
    """Results of a run, and of the runs made from it with their name in brackets after the task.

    Raises:
        CheckpointError: there are none.
        DataError: a damaged result file.
    """
    results: list[Mapping[str, Any]] = [*read_results(run.results)]
    for other in made_from(run):
        for result in read_results(other.results):
            stale = "" if of_these_weights(run, result) else ", of other weights"
            results.append(result | {"task": f"{result['task']} ({other.folder.name}{stale})"})
    if not results:
        raise CheckpointError(f"{run.folder}: no results yet; run `mu retrieve` or `mu zeroshot` first")
    return results


def _parsed(cell: str) -> float | str | None:
    """A cell of the paper's tables for JSON: the number that it says, null where it is empty."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _cells(metric: Metric, intervals: bool) -> list[Any]:
    if intervals:
        return [metric.value, metric.low, metric.high]
    value = number(metric.value, "-")
    ends = interval(metric.low, metric.high)
    return [f"{value} ({ends})" if ends else value]
