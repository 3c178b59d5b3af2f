"""Files of JSON lines after kills, full disks and editors."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.errors import DataError, one_line
from medunifier_cli.run.lines import whole_lines
from medunifier_cli.run.log import Log, LogLine, read_log

ROWS: list[dict[str, Any]] = [{"event": "train", "step": step, "loss": 1 / step} for step in range(1, 6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def written(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def test_the_line_that_a_kill_cut_short_is_left_out_without_a_word(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_lines(path, LogLine) == []
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"event": "tra')
    assert whole_lines(path, LogLine) == ROWS
    assert capsys.readouterr().err == ""


def test_lines_end_at_line_feeds_only(path: Path) -> None:
    rows = [{"text": "a\u2028b"}, {"text": "c\u0085d"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert whole_lines(path, dict[str, Any]) == rows


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\xfd",
        b"\0" * 50,
        b"[" * 5000,
        b"[]",
        b"3",
        b"{}",
        b'{"event": 1, "step": 1}',
        b'{"event": "train", "step": -1}',
        b'{"event": "train", "step": "1"}',
        b'{"event": "train", "step": ' + b"1" * 400 + b"}",
        b'{"event": "train", "step": ' + b"1" * 5000 + b"}",
        b'{"event": "\\ud800", "step": 1}',
        b'{"event": "train", "step": 1',
    ],
)
def test_a_damaged_line_is_named_and_the_others_count(
    path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps(row).encode() for row in ROWS]
    path.write_bytes(written(*good[:2], damage, *good[2:], damage))
    assert read_log(path) == ROWS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mu: ")
    assert f"{path.name}:3" in line
    assert line.endswith("this line and 1 more is left out")
    Log(path, 3)  # a run that resumes goes on with what there is
    assert read_log(path) == ROWS[:3]


def test_a_folder_under_the_name_is_one_line(path: Path) -> None:
    path.mkdir()
    with pytest.raises(DataError, match=r"log\.jsonl: cannot be read"):
        read_log(path)


def test_changed_bytes_cost_no_other_line(path: Path) -> None:
    draws, whole = random.Random(0), b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    for _ in range(300):
        content = bytearray(whole)
        place = draws.randrange(len(content))
        content[place] = draws.randrange(256)
        path.write_bytes(content)
        hit = whole[:place].count(b"\n")  # a line feed that is gone costs the line after it as well
        kept = [row for number, row in enumerate(ROWS) if number not in (hit, hit + 1)]
        lines = read_log(path)
        assert all(row in lines for row in kept)


def test_warnings_are_clean(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = path.with_name("a\x1b[31m\n.jsonl")
    odd.write_bytes(b"{\n")
    whole_lines(odd, LogLine)
    text = capsys.readouterr().err.removesuffix("\n")
    assert text.removeprefix("mu: ") == one_line(text.removeprefix("mu: "))
