"""A line on stderr is one line, clean and short, whatever was put into it."""

import json
from pathlib import Path

import pytest

from medunifier_cli.distributed.rank import run_rank
from medunifier_cli.errors import LINE_LIMIT, DataError, MuError, explain, one_line, traceback_text


def test_control_characters_are_written_out() -> None:
    assert one_line("a\x1b[31mb\u202ec\ud800") == r"a\x1b[31mb\x202ec\xd800"


def test_lines_are_joined() -> None:
    assert str(MuError("one\n\ntwo\n")) == "one; two"


def test_a_long_line_keeps_its_beginning_and_its_advice() -> None:
    line = one_line("file.json: " + "x" * 5000 + "; run it again")
    assert len(line) == LINE_LIMIT
    assert line.startswith("file.json: ")
    assert line.endswith("; run it again")
    assert " ... " in line


SECRET = "Right-sided pneumothorax of Mr Smith"


def fail_on_a_report() -> None:
    """As a parser that quotes what it cannot read, under an error of ours."""
    try:
        try:
            float(SECRET)
        except ValueError as error:
            error.add_note(SECRET) if hasattr(error, "add_note") else None
            raise KeyError(SECRET) from error
    except KeyError:
        raise DataError("reports.csv:3: no number") from None


def test_a_traceback_shows_types_places_and_our_messages_but_no_report() -> None:
    with pytest.raises(DataError) as caught:
        fail_on_a_report()
    text = traceback_text(caught.value)
    assert "Smith" not in text
    kinds = ["ValueError", "KeyError", "medunifier_cli.errors.DataError: reports.csv:3: no number"]
    assert [line for line in text.splitlines() if line in kinds] == kinds
    assert text.count("in fail_on_a_report") == 3


def test_an_error_that_leads_back_to_itself_ends() -> None:
    one, two = ValueError("a"), ValueError("b")
    one.__context__, two.__context__ = two, one
    assert traceback_text(one).count("ValueError") == 2


@pytest.mark.parametrize("argv", [["mu", "pretrain", "--debug"], ["mu", "pretrain"]])
def test_a_rank_that_fails_shows_no_report(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        json.loads(SECRET + float(SECRET))  # type: ignore[operator]

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        run_rank(work, (), 0)
    text = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Smith" not in text
    assert "mu: unexpected ValueError in " in text
    assert ("Traceback" in text) == ("--debug" in argv)


def test_a_name_that_no_file_system_takes_is_one_line() -> None:
    with pytest.raises(OSError, match="name too long") as caught:
        Path("x" * 300).read_bytes()
    (line,), code = explain(caught.value)
    assert code == 1
    assert line == one_line(line)
    assert line.startswith("a name too long for the file system: xxx")
    assert line.endswith("; choose a shorter one")
