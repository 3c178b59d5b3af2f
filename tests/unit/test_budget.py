"""What a document may take is estimated before it is parsed, and the estimate holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli import budget, parsing
from medunifier_cli.errors import DataError

MEASURE = """
import sys
from pathlib import Path
from typing import Any
from medunifier_cli import parsing
parsing.read_json(Path(sys.argv[1]), list[Any])
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_many_small_lists_are_refused_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CONTAINERS", 10)
    assert parsing.parse_json("[" + "[]," * 8 + "[]]", list[Any], "x")
    monkeypatch.setattr("json.loads", lambda *_: pytest.fail("parsed"))
    with pytest.raises(DataError, match="x: holds more than 10 lists and objects"):
        parsing.parse_json("[" + "[]," * 10 + "[]]", list[Any], "x")


def test_lines_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' * 20)
    assert len(parsing.read_json_lines(path, dict[str, Any])) == 20
    monkeypatch.setattr(budget, "CONTAINERS", 10)
    with pytest.raises(DataError, match=r"x\.jsonl:11: up to here, it holds more than 10 lists and objects"):
        parsing.read_json_lines(path, dict[str, Any])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": [1, 2.5]}', None),
        ('\ufeff{"a": [1, 2.5], "b": "\\ud83d\\ude00"}', None),
        ('{"a": ["secret"]}', "expected float, got str at"),
        ('{"a": [1}', "no JSON"),
        ('{"a": [1', "no JSON"),
        ("[" * 100_000, "expected object"),
    ],
)
def test_a_large_document_is_read_as_a_small_one(
    text: str, what: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = text.encode()
    monkeypatch.setattr(parsing, "PLAIN_BYTES", 1)
    if what is None:
        assert parsing.parse_json(small, dict[str, Any], "x")["a"] == [1, 2.5]
        return
    with pytest.raises(DataError, match=what) as caught:
        parsing.parse_json(small, dict[str, list[float]], "x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("part", ['{"a":[]},', '"ab",', "1.5,"])
def test_the_estimate_is_no_less_than_what_is_taken(tmp_path: Path, part: str) -> None:
    content = "[" + part * 100_000 + "0]"
    (tmp_path / "x.json").write_text(content)
    (tmp_path / "none.json").write_text("[]")
    taken = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEASURE, str(tmp_path / name)], capture_output=True, check=True
            ).stdout
        )
        for name in ("none.json", "x.json")
    ]
    counted = budget.Budget(3)
    before = counted.left
    counted.spend(content.encode())
    assert (taken[1] - taken[0]) << 20 <= before - counted.left + (8 << 20)
