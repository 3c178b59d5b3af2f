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
