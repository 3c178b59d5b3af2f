"""Result files: their keys, what is compared byte by byte, and how metrics are printed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.evaluate.results import Metric, Result, mean, read_results, table, write_samples
from medunifier_cli.files import sha256
from medunifier_cli.run.record import Run
from medunifier_cli.scores.bootstrap import Interval, mean_intervals


@pytest.fixture
def trained(tmp_path: Path) -> PretrainedRun:
    """What a result takes from a run."""
    run = Run(tmp_path / "runs" / "r")
    return cast(PretrainedRun, SimpleNamespace(run=run, step=7, identity="abc"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text("{}")
    return tmp_path / "shards"


METRICS = (
    Metric.of("accuracy", 0.5, Interval(0.4, 0.6), 0.25, unit="share", note="of all"),
    Metric("METEOR", None, note="no Java"),
)


def result(shards: Path, **changes: Any) -> Result:
    facts: dict[str, Any] = {"protocol": "by hand", "n": 4, "seed": 3, "metrics": METRICS, "more": {"z": [1]}}
    return Result("task", "data", "test", shards, **(facts | changes))


def test_a_result_file_holds_these_keys_in_this_order(trained: PretrainedRun, shards: Path) -> None:
    path = result(shards).write(trained)
    assert path == trained.run.results / "task-data-test.json"
    content = json.loads(path.read_text())
    assert content.pop("versions")["medunifier"]
    assert content == {
        "task": "task", "dataset": "data", "split": "test", "protocol": "by hand", "n": 4, "seed": 3,
        "metrics": [
            {"name": "accuracy", "value": 0.5, "floor": 0.25, "unit": "share", "note": "of all",
             "low": 0.4, "high": 0.6},
            {"name": "METEOR", "value": None, "floor": None, "unit": "", "note": "no Java",
             "low": None, "high": None},
        ],
        "checkpoint": {"step": 7, "hash": "abc"},
        "data": {"shards": str(shards), "manifest": sha256(shards / "manifest.json")},
        "z": [1],
    }  # fmt: skip
    text = path.read_text()
    keys = ['"checkpoint"', '"data"', '"dataset"', '"metrics"', '"n"', '"protocol"', '"z"']
    assert [text.index(f"\n {key}") for key in keys] == sorted(text.index(f"\n {key}") for key in keys)
    assert text.endswith("}\n")
    before = path.read_bytes()
    assert result(shards).write(trained).read_bytes() == before


def test_metrics_come_back_from_the_file(trained: PretrainedRun, shards: Path) -> None:
    result(shards).write(trained)
    result(shards, more={}, metrics=[]).write(trained)
    (content,) = read_results(trained.run.results)
    assert content["metrics"] == []
    result(shards).write(trained)
    (content,) = read_results(trained.run.results)
    assert tuple(Metric.from_json(entry) for entry in content["metrics"]) == METRICS
    assert read_results(trained.run.folder / "nowhere") == []


def test_samples_are_written_next_to_the_result(trained: PretrainedRun) -> None:
    path = write_samples(trained.run, "task", "data", "test", iter([{"b": 1, "a": 2}, {"a": None}]))
    assert path == trained.run.results / "task-data-test.samples.jsonl"
    assert path.read_text() == '{"a": 2, "b": 1}\n{"a": null}\n'


def test_a_mean_has_the_interval_of_the_bootstrap() -> None:
    hits = np.array([True, False, True, True])
    groups = [1, 1, 2, 3]
    metric = mean("hits", hits, 0.5, "share", groups=groups, seed=5)
    interval = mean_intervals({"hits": hits.astype(float)}, groups, seed=5)["hits"]
    assert metric == Metric("hits", 0.75, 0.5, "share", "", interval.low, interval.high)
    assert metric != mean("hits", hits, 0.5, "share", seed=5), "patients are resampled as a whole"


def test_metrics_are_printed_in_columns() -> None:
    assert table(METRICS).splitlines() == [
        "                  value  95 % interval  baseline",
        "accuracy (share)  0.500    0.400-0.600     0.250",
        "METEOR                -",
    ]
    assert table([Metric("a", 1.0), Metric("bcd", -0.25, 0.0)]).splitlines() == [
        "      value  baseline",
        "a     1.000",
        "bcd  -0.250     0.000",
    ]
