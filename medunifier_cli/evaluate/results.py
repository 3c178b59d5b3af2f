"""Result files: what was measured, how, on what. Two runs of one command write the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.files import write_text
from medunifier_cli.run.provenance import data_facts, versions
from medunifier_cli.run.record import Run
from medunifier_cli.scores.bootstrap import mean_intervals


@dataclass(frozen=True)
class Metric:
    """One number."""

    name: str
    value: float | None
    """None where it could not be measured; `note` says why."""
    floor: float | None = None
    """What no skill at all would give: chance, the mean image, ..."""
    unit: str = ""
    note: str = ""
    low: float | None = None
    """Ends of the 95 % bootstrap interval, None where there is none."""
    high: float | None = None


def mean(
    name: str, values_n: ArrayLike, floor: float | None = None, unit: str = "", *,
    groups: ArrayLike | None = None, seed: int = 0,
) -> Metric:  # fmt: skip
    """The mean over samples, such as the share of hits, and its bootstrap interval.

    Args:
        values_n: [n] numbers, or whether each is a hit.
        groups: [n] patients, drawn whole.
    """
    values = np.asarray(values_n, dtype=np.float64)
    span = mean_intervals({name: values}, groups, seed=seed)[name]
    return Metric(name, float(values.mean()), floor, unit, low=span.low, high=span.high)


def write_result(
    trained: PretrainedRun, task: str, dataset: str, split: str, shards: Path, *,
    protocol: str, n: int, seed: int, metrics: Sequence[Metric],
    more: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write `results/<task>-<dataset>-<split>.json` of a run.

    Args:
        shards: folder of the split, for the hash of its manifest.
        protocol: how it was measured, in one sentence.
        n: samples.
        seed: of what was drawn: samples, prompts, words, resamples.
        more: anything else that fits JSON.
    """
    content = {
        "task": task,
        "dataset": dataset,
        "split": split,
        "protocol": protocol,
        "n": n,
        "seed": seed,
        "metrics": [asdict(metric) for metric in metrics],
        "checkpoint": {"step": trained.step, "hash": trained.identity},
        "data": data_facts(shards),
        "versions": versions(),
        **(more or {}),
    }
    trained.run.results.mkdir(parents=True, exist_ok=True)
    path = trained.run.results / f"{task}-{dataset}-{split}.json"
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return path


def write_samples(run: Run, task: str, dataset: str, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Per-sample outputs beside the result file: `results/<task>-<dataset>-<split>.samples.jsonl`.

    Args:
        rows: one mapping per sample, in the order of the split; fits JSON.
    """
    run.results.mkdir(parents=True, exist_ok=True)
    path = run.results / f"{task}-{dataset}-{split}.samples.jsonl"
    write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    return path


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All result files of a run, by name."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [json.loads(path.read_text()) for path in paths]


def table(metrics: Sequence[Metric], decimals: int = 3) -> str:
    """Metrics as aligned lines: name, value, 95 % interval where there is one, floor."""
    rows = [("", "value", "95 % interval", "floor")]
    for metric in metrics:
        value = "-" if metric.value is None else f"{metric.value:.{decimals}f}"
        floor = "" if metric.floor is None else f"{metric.floor:.{decimals}f}"
        rows.append((metric.name + (f" ({metric.unit})" if metric.unit else ""), value, span(metric), floor))
    if not any(row[2] for row in rows[1:]):
        rows = [(name, value, "", floor) for name, value, _, floor in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for name, *numbers in rows:
        cells = [f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=True) if width]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def span(metric: Metric, decimals: int = 3) -> str:
    """The interval as `0.123-0.456`, empty where there is none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{metric.low:.{decimals}f}-{metric.high:.{decimals}f}"
