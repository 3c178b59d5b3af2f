"""Result files: what was measured, how, and on which data. The same command writes the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.render import for_programs, number, render
from medunifier_cli.evaluate.render import interval as interval_cell
from medunifier_cli.files import make_folder, write_text
from medunifier_cli.parsing import checked, read_json
from medunifier_cli.run.provenance import data_facts, versions
from medunifier_cli.run.record import Run
from medunifier_cli.scores.bootstrap import Interval, mean_intervals
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show

if TYPE_CHECKING:  # `mu score` prints results without torch
    from medunifier_cli.checkpoint.pretrained import PretrainedRun

BASELINE_KEY = "floor"
"""What result files call a metric's baseline; the key is older than the name."""


@dataclass(frozen=True)
class Metric:
    """One measured number."""

    name: str
    value: float | None
    """None if it could not be measured; `note` says why."""
    baseline: float | None = None
    """The value reached without any skill: chance, the most frequent class, the mean image."""
    unit: str = ""
    note: str = ""
    low: float | None = None
    """Lower end of the 95 % bootstrap interval; None if there is no interval."""
    high: float | None = None
    """Upper end."""

    @classmethod
    def of(
        cls, name: str, value: float | None, interval: Interval | None, baseline: float | None = None,
        unit: str = "", note: str = "",
    ) -> Metric:  # fmt: skip
        """A metric and its bootstrap interval; None for no interval."""
        low, high = (interval.low, interval.high) if interval is not None else (None, None)
        return cls(name, value, baseline, unit, note, low, high)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Metric:
        """A metric as a result file holds it."""
        known = {field.name for field in fields(cls)}  # a later version may write more
        renamed = {("baseline" if key == BASELINE_KEY else key): value for key, value in entry.items()}
        return cls(**{key: value for key, value in renamed.items() if key in known})

    def as_json(self) -> dict[str, Any]:
        """The metric as a result file holds it."""
        return {(BASELINE_KEY if key == "baseline" else key): value for key, value in vars(self).items()}

    @property
    def title(self) -> str:
        """The name, with the unit in brackets if there is one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def mean(
    name: str, values_n: ArrayLike, baseline: float | None = None, unit: str = "", *,
    groups: ArrayLike | None = None, seed: int = 0,
) -> Metric:  # fmt: skip
    """The mean over samples, for example the share of hits, with its bootstrap interval.

    Args:
        values_n: [n] numbers, or booleans that are True for a hit.
        groups: [n] patients; the bootstrap resamples patients as a whole. None resamples samples.
    """
    values = np.asarray(values_n, dtype=np.float64)
    interval = mean_intervals({name: values}, groups, seed=seed)[name]
    return Metric.of(name, float(values.mean()), interval, baseline, unit)


@dataclass(frozen=True)
class Result:
    """One task measured on one split: the content of a result file."""

    task: str
    dataset: str
    split: str
    shards: Path
    """Folder of the split; the file keeps the hash of its manifest."""
    protocol: str
    """How it was measured, in one sentence."""
    n: int
    """Number of samples."""
    seed: int
    """Seed of whatever is random in the task: samples, prompts, words, resamples."""
    metrics: Sequence[Metric]
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of this task that fit JSON."""

    def path(self, trained: PretrainedRun) -> Path:
        """`results/<task>-<dataset>-<split>.json` of the run that was measured."""
        return trained.run.results / f"{self.task}-{self.dataset}-{self.split}.json"

    def metrics_before(self, trained: PretrainedRun) -> list[dict[str, Any]] | None:
        """The metrics of the file that is there, if all it says but the metrics is what this result says.

        None, too, for a file that is damaged: it is about to be written anew.
        """
        try:
            before = read_result(self.path(trained))
        except (DataError, OSError):
            return None
        metrics: list[dict[str, Any]] = before.pop("metrics")
        expected = self.content(trained)
        del expected["metrics"]
        return metrics if before == expected else None

    def content(self, trained: PretrainedRun) -> dict[str, Any]:
        """What the result file says, as it fits JSON."""
        return {
            "task": self.task,
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol,
            "n": self.n,
            "seed": self.seed,
            "metrics": [metric.as_json() for metric in self.metrics],
            "checkpoint": {"step": trained.step, "hash": trained.identity},
            "data": data_facts(self.shards),
            "versions": versions(),
            **self.more,
        }

    def write(self, trained: PretrainedRun) -> Path:
        """Write the result file; returns its path."""
        content, path = self.content(trained), self.path(trained)
        if trained.run.writable:
            make_folder(trained.run.results)
            write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
        else:  # the run of a colleague: what was measured is printed all the same
            say(
                f"{path}: not written, as this user may not write there; copy the run to keep results",
                always=True,
            )
        return path


def write_samples(run: Run, task: str, dataset: str, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write per-sample outputs next to the result file: `results/<task>-<dataset>-<split>.samples.jsonl`.

    Args:
        rows: one mapping per sample, in the order of the split; fits JSON.
    """
    path = run.results / f"{task}-{dataset}-{split}.samples.jsonl"
    if run.writable:  # else `Result.write` says so
        make_folder(run.results)
        write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    return path


class NamedValue(TypedDict):
    """What every metric of a result file has."""

    name: str
    value: float | None


class MetricEntry(NamedValue, total=False):
    """A metric of a result file; those of earlier versions have fewer keys."""

    floor: float | None
    unit: str
    note: str
    low: float | None
    high: float | None


class Measured(TypedDict):
    """What every result file has."""

    task: str
    dataset: str
    split: str
    metrics: list[MetricEntry]


class ResultFile(Measured, total=False):
    """What is read of a result file; each task adds facts of its own."""

    checkpoint: dict[str, str | int]


def read_result(path: Path) -> dict[str, Any]:
    """One result file with all its keys.

    Raises:
        DataError: damaged, or another program's file.
    """
    advice = "measure it again, or delete the file"
    content = read_json(path, dict[str, Any], DataError, advice)
    checked(content, ResultFile, str(path), DataError, advice)
    return content


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All result files of a run, sorted by file name.

    Raises:
        DataError: one of them is damaged.
    """
    return [read_result(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []


def table(metrics: Sequence[Metric]) -> str:
    """Metrics in the chosen format: name, value, 95 % interval (if any metric has one) and baseline."""
    return tables({"": metrics})


def tables(metrics: Mapping[str, Sequence[Metric]]) -> str:
    """Metrics by heading in the chosen format: as text and Markdown a table each, for programs a single one.

    A heading that is empty is left out.
    """
    chosen = form()
    if for_programs(chosen):
        headed = any(metrics)
        rows: list[list[object]] = [
            [*(["what"] if headed else []), "metric", "value", "low", "high", "baseline", "unit"]
        ]
        for heading, some in metrics.items():
            own: list[object] = [heading] if headed else []
            rows += [[*own, m.name, m.value, m.low, m.high, m.baseline, m.unit] for m in some]
        return render(rows, chosen)
    mark = "### {}\n" if chosen == "markdown" else "{}"
    parts = []
    for heading, some in metrics.items():
        parts += [mark.format(heading)] if heading else []
        parts.append(_table(some, chosen))
    return "\n".join(parts)


def show_measured(heading: str, metrics: Sequence[Metric]) -> None:
    """Print what was measured with a line of what it was measured on, which a program does not get."""
    show(heading, err=for_programs(form()))
    show(table(metrics))


def _table(metrics: Sequence[Metric], chosen: str) -> str:
    rows = [["" if chosen == "text" else "metric", "value", "95 % interval", "baseline"]]
    rows += [
        [metric.title, number(metric.value, "-"), span(metric), number(metric.baseline)] for metric in metrics
    ]
    if not any(row[2] for row in rows[1:]):
        rows = [[row[0], row[1], row[3]] for row in rows]
    return render(rows, chosen)


def span(metric: Metric) -> str:
    """A metric's interval as `0.123-0.456`; empty if it has none."""
    return interval_cell(metric.low, metric.high)
