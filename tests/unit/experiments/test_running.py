"""experiments/running.py: whose folders a verb runs in, and what of a page an experiment replaces."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from experiments.running import mu, write_part

BEGIN, END = "<!-- written by experiments/codes.py -->", "<!-- end -->"


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "codes.md"
    page.write_text(f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nThe rest.\n")
    for text in ("first", "second, longer\n\n| a |"):
        write_part("codes", text, tmp_path)
        assert page.read_text() == f"# Title\n\n{BEGIN}\n\n{text}\n\n{END}\n\nThe rest.\n"


@pytest.mark.parametrize("text", ["# No marks\n", f"{BEGIN}\nno end\n"])
def test_a_page_without_its_marks_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    page = tmp_path / "codes.md"
    page.write_text(text)
    with pytest.raises(click.ClickException, match="has no lines"):
        write_part("codes", "table", tmp_path)
    assert page.read_text() == text


def test_a_verb_runs_in_the_folders_of_the_experiment(tmp_path: Path) -> None:
    """By an error that names the folder: a run that trains would take half a minute."""
    with (tmp_path / "a.log").open("w") as log, pytest.raises(click.ClickException, match="ended with 1"):
        mu(["score", "nobody"], tmp_path, log.fileno())
    assert f"{tmp_path}/runs" in (tmp_path / "a.log").read_text()
