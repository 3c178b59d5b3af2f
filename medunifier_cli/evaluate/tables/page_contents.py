"""What the page of a run shows of its results: headlines, all numbers in groups, confusion, examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medunifier_cli.checkpoint.lineage import made_from
from medunifier_cli.evaluate.render import interval, number
from medunifier_cli.evaluate.results import Metric
from medunifier_cli.evaluate.tables.examples import report_examples, retrieval_examples
from medunifier_cli.evaluate.tables.headlines import headlines
from medunifier_cli.evaluate.tables.tables import results_of
from medunifier_cli.page.run_page import (
    Confusion,
    ConfusionRow,
    Contents,
    Number,
    NumberGroup,
    span,
)
from medunifier_cli.run.record import Run


def contents_of(run: Run) -> Contents:
    """What a run and the runs made from it have measured, for `page.run_page`.

    Raises:
        CheckpointError: a run without results.
        DataError: a damaged result file.
    """
    results = results_of(run)
    reports, of_reports = report_examples(run, results)
    retrieval, of_retrieval = retrieval_examples(run, results)
    return Contents(
        headlines=[
            shown_number(one.metric, where=f"{one.task}, {one.data}") for one in headlines(run)
        ],
        groups=[_group(result) for result in results if result["metrics"]],
        reports=reports,
        retrieval=retrieval,
        confusions=[one for result in results for one in _confusion(result)],
        made_from=made_from(run),
        texts_of=[*of_reports, *of_retrieval],
    )  # fmt: skip


def shown_number(metric: Metric, where: str = "") -> Number:
    """A metric as the page shows it."""
    return Number(
        name=metric.title,
        value=number(metric.value, "-"),
        bar=span(metric.value, metric.baseline, metric.low, metric.high),
        baseline=number(metric.baseline),
        interval=interval(metric.low, metric.high),
        where=where,
    )


def _group(result: Mapping[str, Any]) -> NumberGroup:
    title = f"{result['task']}, {result['dataset']}/{result['split']}"
    size = f"n = {result['n']:,}; " if isinstance(result.get("n"), int) else ""
    metrics = [Metric.from_json(entry) for entry in result["metrics"]]
    return NumberGroup(title, f"{size}{result.get('protocol', '')}", [shown_number(one) for one in metrics])


def _confusion(result: Mapping[str, Any]) -> list[Confusion]:
    """The confusion matrix of a result; none where it has none, or not one row and column for each class."""
    classes, counts = result.get("classes"), result.get("confusion")
    if not isinstance(classes, list) or not isinstance(counts, list) or len(counts) != len(classes):
        return []
    if not all(_is_row(row, len(classes)) for row in counts):
        return []
    total, right = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(counts)))
    rows = [
        ConfusionRow(str(name), [(count, round(count / (sum(row) or 1), 3)) for count in row])
        for name, row in zip(classes, counts, strict=True)
    ]
    title = f"{result['task']}, {result['dataset']}/{result['split']}"
    return [Confusion(title, [str(name) for name in classes], rows, total, right / total if total else 0.0)]


def _is_row(row: object, length: int) -> bool:
    return isinstance(row, list) and len(row) == length and all(isinstance(count, int) for count in row)
