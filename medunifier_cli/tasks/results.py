"""Result files: what was measured, how, on what. Two runs of one command write the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medunifier_cli.checkpoint.restore import Trained
from medunifier_cli.train.record import data_facts, versions, write_whole


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


def write_result(
    trained: Trained, task: str, dataset: str, split: str, shards: Path, *,
    protocol: str, n: int, metrics: Sequence[Metric], seed: int | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write `results/<task>-<dataset>-<split>.json` of a run.

    Args:
        shards: folder of the split, for the hash of its manifest.
        protocol: how it was measured, in one sentence.
        n: samples.
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
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return path


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All result files of a run, by name."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [json.loads(path.read_text()) for path in paths]


def table(metrics: Sequence[Metric], decimals: int = 3) -> str:
    """Metrics as aligned lines: name, value, floor."""
    rows = [("", "value", "floor")]
    for metric in metrics:
        value = "-" if metric.value is None else f"{metric.value:.{decimals}f}"
        floor = "" if metric.floor is None else f"{metric.floor:.{decimals}f}"
        rows.append((metric.name + (f" ({metric.unit})" if metric.unit else ""), value, floor))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows)
