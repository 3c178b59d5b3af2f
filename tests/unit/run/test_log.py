"""`log.jsonl` after a stop, a kill and a new start."""

from __future__ import annotations

import json
from pathlib import Path

from medunifier_cli.run.log import Log


def steps(path: Path) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in map(json.loads, path.read_text().splitlines())]


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    log.write("train", 1, {"total": 0.5, "lr": 1e-4})
    assert json.loads(path.read_text()) == {"event": "train", "step": 1, "total": 0.5, "lr": 1e-4}
    log.write("valid", 1, {})
    assert steps(path) == [("train", 1), ("valid", 1)]


def test_a_resumed_run_cuts_off_what_its_checkpoint_has_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    for step in range(1, 6):
        log.write("train", step, {})
    with path.open("a") as file:
        file.write('{"event": "train", "step": 6, "to')  # torn by a kill
    Log(path, 3).write("train", 4, {"again": 1.0})
    assert steps(path) == [("train", 1), ("train", 2), ("train", 3), ("train", 4)]
    assert json.loads(path.read_text().splitlines()[-1])["again"] == 1.0


def test_a_torn_line_of_a_step_that_counts_is_left_out_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "train", "step": 2')
    Log(path, 5).write("train", 6, {})
    assert steps(path) == [("train", 1), ("train", 6)]


def test_a_new_run_starts_with_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Log(path, 0).write("train", 1, {})
    Log(path, 0)
    assert path.read_text() == ""
