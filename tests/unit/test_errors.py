"""A line on stderr is one line, clean and short, whatever was put into it."""

from medunifier_cli.errors import LINE_LIMIT, MuError, one_line


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
