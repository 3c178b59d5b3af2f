"""What reaches a terminal: no control character, whatever names files and classes have."""

from __future__ import annotations

import json
import re

import pytest

from medunifier_cli.terminal.say import counted, say, show
from tests.folders import ROOT

HOSTILE = "a\x1b]0;title\x07b\rc\x9bd\u202ee\ud800"


def test_one_thing_is_not_counted_in_the_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert [counted(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]


def test_results_keep_their_lines_and_letters(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Größe\tπ\n\n| a | b |\n"
    show(text)
    show(text, err=True)
    assert capsys.readouterr() == (text + "\n", text + "\n")


def test_control_characters_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    show(HOSTILE)
    say(HOSTILE)
    shown, said = capsys.readouterr()
    assert shown == r"a\u001b]0;title\u0007b\u000dc\u009bd\u202ee\ud800" + "\n"
    assert said.isascii()
    assert said.removesuffix("\n").isprintable()


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    show(json.dumps({"file": HOSTILE}, ensure_ascii=False))
    assert json.loads(capsys.readouterr().out) == {"file": HOSTILE}


def test_nothing_else_prints_results() -> None:
    """A new verb that calls `click.echo` itself would print names as they are."""
    printing = {
        path.name
        for folder in ("commands", "evaluate", "stages")
        for path in (ROOT / "medunifier_cli" / folder).rglob("*.py")
        if re.search(r"click\.s?echo\(|\bprint\(", path.read_text(encoding="utf-8"))
    }
    assert printing == set()
