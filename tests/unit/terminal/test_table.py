"""Rows as aligned text."""

from __future__ import annotations

import pytest

from medunifier_cli.terminal.table import text_table


def test_words_to_the_left_and_numbers_to_the_right() -> None:
    rows = [["metric", "value", "n"], ["AUROC", "0.9", "1,200"], ["F1", "0.75", "8"]]
    assert text_table(rows) == ["metric  value      n", "AUROC     0.9  1,200", "F1       0.75      8"]


def test_more_columns_of_words_and_another_gap() -> None:
    rows = [["a", "long name", "1"], ["bb", "x", "22"]]
    assert text_table(rows, words=2, gap=" | ") == ["a  | long name |  1", "bb | x         | 22"]


def test_no_trailing_blanks() -> None:
    assert text_table([["a", "word"], ["b", ""]], words=2) == ["a  word", "b"]


def test_no_rows_are_no_lines() -> None:
    assert text_table([]) == []


def test_rows_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        text_table([["a", "b"], ["c"]])


def test_a_table_that_is_too_wide_continues_its_words() -> None:
    rows = [["metric", "value"], ["one two three four five six seven", "1.0"], ["short", "22.0"]]
    lines = text_table(rows, width=26)
    assert lines == [
        "metric               value",
        "one two three four     1.0",
        "  five six seven",
        "short                 22.0",
    ]


def test_what_still_does_not_fit_becomes_tables_below_each_other() -> None:
    rows = [["run", *(f"column {i}" for i in range(9))], ["demo", *(f"{i}.000" for i in range(9))]]
    lines = text_table(rows, width=40)
    assert max(map(len, lines)) <= 40
    assert [line.split()[0] for line in lines if line] == ["run", "demo"] * 3
    numbers = [cell for line in lines if line.startswith("demo") for cell in line.split()[1:]]
    assert numbers == [f"{i}.000" for i in range(9)], "each once, in order"


def test_a_path_without_blanks_is_broken_and_whole() -> None:
    path = "/data/" + "x" * 150 + ".png"
    lines = text_table([["file", "a"], [path, "0.5"]])
    assert max(map(len, lines)) <= 100
    assert "".join(line.removesuffix("0.5").strip() for line in lines[1:]) == path
