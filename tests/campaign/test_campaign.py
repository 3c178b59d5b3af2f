"""A minute of the campaign, the same trials in each run; `make campaign` is the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.campaign.home import REACHED
from tests.campaign.parts import SHORT
from tests.campaign.record import Book, Outcome
from tests.campaign.report import failures
from tests.folders import ROOT

LIMIT = 900
"""Seconds; it takes about a minute on a core of its own."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Outcome]:
    """In a process of its own, as a campaign forks and pytest has threads."""
    work = tmp_path_factory.mktemp("campaign")
    line = [sys.executable, "-m", "tests.campaign", "all", "--short", "--jobs", "1", "--work", str(work)]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MU_", "PYTEST"))
    }
    with open(work / "output", "wb") as output:
        subprocess.run(
            line, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT
        )
    found = Book(work).outcomes()
    assert {outcome.trial for outcome in found} == set(SHORT), _end_of(work / "output")
    return found


def _end_of(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")[-3000:]


def failing(outcomes: Sequence[Outcome], part: str) -> list[str]:
    """What failed in one part."""
    return failures([outcome for outcome in outcomes if outcome.part == part])


def test_killed_calls_of_every_verb_end_bit_equal(outcomes: Sequence[Outcome]) -> None:
    assert failing(outcomes, "kills") == []
    assert sum(outcome.tries for outcome in outcomes if outcome.part == "kills") >= 8


def test_signals_in_any_phase_end_with_75_and_resume(outcomes: Sequence[Outcome]) -> None:
    assert failing(outcomes, "signals") == []
    assert all(outcome.tries for outcome in outcomes if outcome.part == "signals")


def test_a_full_disk_is_one_line_and_costs_nothing(outcomes: Sequence[Outcome]) -> None:
    assert failing(outcomes, "disk") == []


def test_only_a_line_of_mu_comes_out_of_damaged_files(outcomes: Sequence[Outcome]) -> None:
    assert failing(outcomes, "fuzz") == []


def test_no_verb_reaches_for_the_network(outcomes: Sequence[Outcome]) -> None:
    said = [failure for outcome in outcomes for failure in outcome.failures]
    assert [failure for failure in said if REACHED in failure] == []


def test_the_campaign_itself_ran(outcomes: Sequence[Outcome]) -> None:
    assert [outcome.failures for outcome in outcomes if outcome.test == "the campaign itself"] == []
