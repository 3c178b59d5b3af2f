"""The few numbers that tell first what a run reached: one or two of each task, with interval and baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.render import for_programs, interval, number, render
from medunifier_cli.evaluate.results import Metric, read_results
from medunifier_cli.evaluate.tables.tables import results_of
from medunifier_cli.run.record import Run

FIRST: Mapping[str, tuple[str, ...]] = {
    "retrieval": ("image to text, map@1", "text to image, map@1"),
    "retrieval-pairs": ("image to text, recall@10", "text to image, recall@10"),
    "report": ("finding micro-F1", "BLEU-4"),
    "pretraining": ("reconstruction PSNR",),
}
"""Task -> names of its headlines, as far as they were measured; of other tasks the first number is one."""
ONE_IS_ENOUGH = ("report",)
"""Tasks of whose names above the first that was measured stands for all."""
INSTEAD = {"retrieval-pairs": "retrieval"}
"""Task -> another one that says the same where both were measured."""
JUDGED = "synthesis"
"""The task of images that were made, whose headline is that of synthetic ones if there are any."""
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Headline:
    """One number of one result."""

    task: str
    """With the name of the run in brackets, where it is one that was made from the run."""
    data: str
    """`phantom/test`."""
    metric: Metric


def headlines(run: Run) -> list[Headline]:
    """The headlines of a run and of the runs made from it, in the order of `mu score`.

    Raises:
        CheckpointError: a run without results.
        DataError: a damaged result file.
    """
    results = results_of(run)
    tasks = {(result["task"], result["dataset"], result["split"]) for result in results}
    judged = [result for result in results if result["task"] == JUDGED]
    synthetic = any(_is_synthetic(result) for result in judged)
    shown = []
    for result in results:
        task, dataset, split = result["task"], result["dataset"], result["split"]
        if (INSTEAD.get(task), dataset, split) in tasks or (
            task == JUDGED and synthetic and not _is_synthetic(result)
        ):
            continue
        shown += [Headline(task, f"{dataset}/{split}", metric) for metric in _first(result)]
    return shown


def _is_synthetic(result: Mapping[str, Any]) -> bool:
    name: str = result["split"]  # of the folder samples/ `synthetic-samples`; earlier versions named none
    return name == SYNTHETIC or name.startswith(f"{SYNTHETIC}-")


def _first(result: Mapping[str, Any]) -> list[Metric]:
    by_name = {entry["name"]: entry for entry in result["metrics"]}
    names = [name for name in FIRST.get(result["task"], ()) if name in by_name] or [*by_name][:1]
    if result["task"] in ONE_IS_ENOUGH:
        names = names[:1]
    return [Metric.from_json(by_name[name]) for name in names]


def render_headlines(runs: Sequence[Run], form: str) -> str:
    """A table of the runs' headlines: task, data, metric, value, interval and baseline.

    As text, lines are short: the name of a data set that all are of is the header of its column.

    Raises:
        CheckpointError: a run without results.
        DataError: a damaged result file.
    """
    several, short = len(runs) > 1, form == "text"
    found = [(run.folder.name, headline) for run in runs for headline in headlines(run)]
    names = {headline.data.split("/")[0] for _, headline in found}
    one_name = names.pop() if short and len(names) == 1 else ""
    rows: list[list[object]] = []
    for name, headline in found:
        task = _short(headline.task) if short else headline.task
        data = headline.data.removeprefix(f"{one_name}/") if one_name else headline.data
        own: list[object] = [name] if several else []
        rows.append([*own, task, data, headline.metric.title, *_numbers(headline.metric, form)])
    ends = ["low", "high"] if for_programs(form) else ["95 % interval"]
    first = ["run"] if several else []
    header: list[object] = [*first, "task", one_name or "data", "metric", "value", *ends, "baseline"]
    return render([header, *rows], form, 3 + several)


def _short(task: str) -> str:
    """`finetune (probe)` -> `probe`: the run's name says enough beside the name of the metric."""
    return task.rpartition(" (")[2].removesuffix(")") if task.endswith(")") else task


def _numbers(metric: Metric, form: str) -> list[object]:
    if for_programs(form):
        return [metric.value, metric.low, metric.high, metric.baseline]
    ends = interval(metric.low, metric.high)
    return [number(metric.value, "-"), ends, number(metric.baseline)]


def headline_of(run: Run) -> str:
    """One number of a run in a few words, of its own results alone; empty where it has none that can be read.

    That of retrieval or zero-shot classification, if it was measured.
    """
    try:
        results = read_results(run.results)
    except DataError:
        return ""
    rank = {"zeroshot": 0, "retrieval": 1, "retrieval-pairs": 2}
    for result in sorted(results, key=lambda result: rank.get(result["task"], len(rank))):
        for metric in _first(result)[:1]:
            if metric.value is not None:
                return f"{metric.title} {number(metric.value)}"
    return ""
