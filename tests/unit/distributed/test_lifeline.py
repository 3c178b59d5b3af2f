"""Two real ranks, one of which fails, dies or hangs: the other ends with it, and one line names it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from medunifier_cli.distributed import lifeline
from tests import warm
from tests.unit.distributed.ranks import TIMEOUT

KILLED = -signal.SIGKILL
WAITED = rf"{TIMEOUT:.0f} s \(train\.timeout\)"


class Outcomes:
    """Exit codes and output of the two ranks of each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes: dict[str, list[int | None]] = json.loads((folder / "codes.json").read_text())

    def printed(self, case: str, rank: int, stream: str = "err") -> str:
        return (self.folder / f"{case}.{rank}.{stream}").read_text()

    def lines(self, case: str) -> list[str]:
        """Lines of ours, of both ranks; without that of a slow start, which a busy machine has."""
        both = [self.printed(case, rank).splitlines() for rank in range(2)]
        ours = [line for lines in both for line in lines if line.startswith("mu: ")]
        return [line for line in ours if not line.startswith("mu: rank 0 waits for all ")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("ranks")
    done = warm.run(["-m", "tests.unit.distributed.ranks", folder], timeout=400)
    assert done.returncode == 0, done.stderr
    return Outcomes(folder)


@pytest.mark.parametrize(
    ("case", "codes", "line"),
    [
        ("died", [1, KILLED], r"rank 1 \(.*, process \d+\) has died; the usual cause is memory"),
        ("main_died", [KILLED, 1], r"rank 0 \(.*, process \d+\) has died; the usual cause is memory"),
        ("stopped", [1, None], f"rank 1 .* has not answered for {WAITED}; look at its machine"),
        ("stuck", [1, 1], f"rank 1 .* has not come where the others wait for {WAITED}; look at its machine"),
    ],
)
def test_a_rank_that_is_lost_is_named_once_and_ends_the_others(
    outcomes: Outcomes, case: str, codes: list[int | None], line: str
) -> None:
    assert outcomes.codes[case] == codes
    assert len(outcomes.lines(case)) == 1
    assert re.match(f"mu: {line}", outcomes.lines(case)[0]), outcomes.lines(case)


@pytest.mark.parametrize(
    ("case", "speaks", "line"),
    [
        ("failed", 1, "rank 1: shard-7.tar: damaged"),
        ("failed_at_barrier", 0, "results.json: no space left"),
        (
            "differing",
            0,
            "rank 1 differs from rank 0 in the recipe: optim.peak_lr 0.002, not 0.001; start all",
        ),
        ("unprepared", 0, "rank 1: /nowhere: no such folder of shards"),
    ],
)
def test_an_error_of_one_rank_is_one_line_and_ends_all(
    outcomes: Outcomes, case: str, speaks: int, line: str
) -> None:
    assert outcomes.codes[case] == [1, 1]
    assert len(outcomes.lines(case)) == 1
    assert outcomes.printed(case, speaks).splitlines()[-1].startswith(f"mu: {line}")


def test_a_rank_that_stays_away_from_an_exchange_is_named(outcomes: Outcomes) -> None:
    assert outcomes.codes["not_there"] == [1, 1]
    assert [line[:34] for line in outcomes.lines("not_there")] == ["mu: rank 1 did not come within 1 s"]


def test_the_others_wait_for_a_main_rank_that_works_longer_than_the_time_out(outcomes: Outcomes) -> None:
    assert outcomes.codes["slow_main"] == [0, 0]


def test_ranks_know_their_places_after_the_group_has_ended(outcomes: Outcomes) -> None:
    assert outcomes.codes["remembered"] == [0, 0]
    said = [outcomes.printed("remembered", rank, "out") for rank in range(2)]
    assert said == ["rank 0 of 2, main\n", "rank 1 of 2, not main\n"]


def test_the_line_is_written_before_the_verdict_with_which_the_process_may_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The main thread ends as soon as there is a verdict: once in many runs the line was lost."""
    monkeypatch.setattr(lifeline, "GRACE", 0.0)
    ended: list[int] = []
    monkeypatch.setattr(lifeline.os, "_exit", ended.append)
    line = lifeline.Lifeline(1, 2, TIMEOUT, launched=False)
    verdicts: list[str] = []
    monkeypatch.setattr(lifeline, "say", lambda why, **_: verdicts.append(line.verdict))
    line._end("rank 0 has died", reported=False, code=1)
    assert (verdicts, line.verdict, ended) == ([""], "rank 0 has died", [1])
