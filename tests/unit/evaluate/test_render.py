"""Rows as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest

from medunifier_cli.evaluate.render import interval, number, render

ROWS = [["metric", "data", "a"], ["map@1, all", 'x "y"', "0.5"], ["b", "", "10.25"]]


def test_text_aligns_words_left_and_numbers_right() -> None:
    assert render(ROWS, "text", words=2).splitlines() == [
        "metric      data       a",
        'map@1, all  x "y"    0.5',
        "b                  10.25",
    ]


def test_markdown_has_a_rule_that_aligns() -> None:
    assert render(ROWS, "markdown", words=2).splitlines() == [
        "| metric     | data  |     a |",
        "| ---------- | ----- | ----: |",
        '| map@1, all | x "y" |   0.5 |',
        "| b          |       | 10.25 |",
    ]


def test_csv_is_read_back() -> None:
    text = render([*ROWS, ["c", None, 1 / 3]], "csv")
    assert list(csv.reader(io.StringIO(text))) == [*ROWS, ["c", "", repr(1 / 3)]]
    assert not text.endswith("\n")


def test_json_keeps_numbers_and_names_them() -> None:
    text = render([["metric", "a"], ["map@1", 1 / 3], ["b", None], ["größe", 7]], "json")
    assert json.loads(text) == [
        {"metric": "map@1", "a": 1 / 3},
        {"metric": "b", "a": None},
        {"metric": "größe", "a": 7},
    ]


def test_numbers_are_short_for_people_and_whole_for_programs() -> None:
    rows: list[list[object]] = [["metric", "a"], ["b", 1 / 3], ["c", None]]
    assert render(rows, "text").splitlines() == ["metric      a", "b       0.333", "c"]
    assert "| 0.333 |" in render(rows, "markdown")
    assert repr(1 / 3) in render(rows, "csv")


def test_a_bar_in_a_cell_is_no_column_of_markdown() -> None:
    assert render([["a", "b"], ["x|y", "1"]], "markdown").splitlines()[-1] == r"| x\|y |   1 |"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (number(0.12345), "0.123"),
        (number(42.25, decimals=1), "42.2"),
        (number(None), ""),
        (number(None, "-"), "-"),
        (interval(0.1, 0.25), "0.100-0.250"),
        (interval(None, 0.25), ""),
    ],
)
def test_cells(cell: str, text: str) -> None:
    assert cell == text
