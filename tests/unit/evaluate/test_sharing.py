"""Work that two ranks share: its order, and what happens when one of them cannot do its part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from medunifier_cli.distributed import group, launch
from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.shared.ranks import on_ranks
from medunifier_cli.options.shared import refuse
from tests.folders import ROOT
from tests.unit.distributed.test_lifeline import Outcomes

IN_TURN = "[(0, 0), (1, 1), (4, 0), (9, 1), (16, 0)] [] 8\n"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.unit.evaluate.sharing_ranks", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=400)
    return Outcomes(folder)


@pytest.mark.parametrize(
    ("case", "printed"),
    [
        ("in_turn", IN_TURN),
        ("told_and_over", "0\n1\n4\n" + IN_TURN),
        ("given_up", "(0, 0) (1, 1) (4, 0)\n" + IN_TURN),
        ("not_loaded_on_main", "weights.pth: damaged\n" + IN_TURN),
        ("not_loaded_on_another", "rank 1: weights.pth: damaged\n" + IN_TURN),
        ("own_networks", "[2.0, 4.0, 2.0]\n"),
        ("by_reference", "[('Given', 0), ('Given', 1), ('Given', 2)] 1\n"),
    ],
)
def test_the_main_rank_gets_all_parts_in_order_and_each_rank_computes_its_own(
    outcomes: Outcomes, case: str, printed: str
) -> None:
    assert outcomes.printed(case, 0, "out") == printed, outcomes.printed(case, 0)
    assert outcomes.printed(case, 1, "out") == ""
    assert outcomes.codes[case] == [0, 0]
    assert outcomes.lines(case) == []


@pytest.mark.parametrize("case", ["damaged_on_main", "damaged_on_another"])
def test_damage_ends_all_by_the_line_that_one_process_says(outcomes: Outcomes, case: str) -> None:
    assert outcomes.codes[case] == [1, 1]
    assert outcomes.lines(case) == ["mu: shard-7.tar: damaged"]
    parts = {"damaged_on_main": "0\n1\n", "damaged_on_another": "0\n1\n4\n"}
    assert outcomes.printed(case, 0, "out") == parts[case]


@pytest.mark.parametrize(
    ("case", "codes", "line"),
    [
        ("killed", [1, -signal.SIGKILL], "mu: rank 1 ("),
        ("a_bug", [1, 1], "mu: rank 1: unexpected ValueError in "),
        ("crossed", [1, 1], "mu: unexpected RuntimeError in sharing.py"),
        ("foreign_network", [1, 1], "mu: unexpected RuntimeError in exchange.py"),
        ("main_fails", [1, 1], "mu: results.json: no space left"),
        ("interrupted", [130, 130], "mu: interrupted"),
    ],
)
def test_a_rank_that_cannot_go_on_ends_the_other_and_one_line_says_why(
    outcomes: Outcomes, case: str, codes: list[int], line: str
) -> None:
    assert outcomes.codes[case] == codes
    assert len(outcomes.lines(case)) == 1, outcomes.lines(case)
    assert outcomes.lines(case)[0].startswith(line)
    assert "a report" not in outcomes.lines(case)[0]


CALLED: list[int] = []


def count(n: int, **_: object) -> int:
    if n > 1000:
        raise MuError("no such split")
    return n


def check(n: int, sbatch: bool) -> None:
    if n < 0:
        refuse({"n"}, "is for samples")


@click.command()
@click.option("--n", type=int)
@click.option("--sbatch", is_flag=True)
@on_ranks(large=100, count=count, check=check)
def verb(n: int, sbatch: bool) -> None:
    CALLED.append(n)


@pytest.mark.parametrize(
    ("words", "rank", "ranks"),
    [
        (["--n", "99"], None, (False, 0, 1)),  # one process
        (["--n", "100"], None, (False, 0, 0)),  # one per GPU
        (["--n", "5", "--num-processes", "3"], None, (False, 3, 0)),
        (["--n", "5"], "1", (True, 0, 0)),
        (["--n", "0", "--num-processes", "3"], None, None),  # nothing to share
        (["--n", "1001"], None, None),  # the verb says what is wrong
        (["--n", "1001"], "0", None),
        (["--n", "500", "--num-processes", "3", "--sbatch"], None, None),  # the script starts them
    ],
)
def test_how_many_processes_a_verb_gets(
    monkeypatch: pytest.MonkeyPatch, words: list[str], rank: str | None, ranks: tuple[bool, int, int] | None
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(launch, "in_ranks", lambda *arguments: asked.append(arguments))
    place(monkeypatch, rank)
    CALLED.clear()
    assert CliRunner().invoke(verb, words, catch_exceptions=False).exit_code == 0
    if ranks is None:
        assert (len(CALLED), asked) == (1, [])
    else:
        assert (CALLED, [arguments[:3] for arguments in asked]) == ([], [ranks])
        assert asked[0][4:] == (verb.callback.__module__, "verb", {"n": int(words[1]), "sbatch": False})


def test_only_the_main_rank_of_a_launcher_does_what_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, calls in (("1", []), ("0", [0])):
        place(monkeypatch, rank)
        CALLED.clear()
        assert CliRunner().invoke(verb, ["--n", "0"], catch_exceptions=False).exit_code == 0
        assert calls == CALLED


@pytest.mark.parametrize(("rank", "code"), [(None, 2), ("0", 2), ("1", 0)])
def test_what_does_not_go_together_is_refused_once_and_before_any_rank_starts(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, code: int
) -> None:
    monkeypatch.setattr(launch, "in_ranks", lambda *_: pytest.fail("started"))
    place(monkeypatch, rank)
    CALLED.clear()
    result = CliRunner().invoke(verb, ["--n", "-1", "--num-processes", "3"], catch_exceptions=False)
    assert (result.exit_code, CALLED) == (code, [])
    assert ("--n is for samples" in result.output) == (code == 2)


def place(monkeypatch: pytest.MonkeyPatch, rank: str | None) -> None:
    """The variables of a launcher of two processes, or of none."""
    values = ("2", rank, rank, "here", "29500")
    for name, value in zip((*group.PLACE, *group.MEETING), values, strict=True):
        monkeypatch.setenv(name, value or "")
        if rank is None:
            monkeypatch.delenv(name)


def test_a_process_of_its_own_does_all_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.evaluate import sharing_ranks

    monkeypatch.setenv("RANK", "0")
    assert list(sharing_ranks.each(sharing_ranks.square, range(3))) == [(0, 0), (1, 0), (4, 0)]
    assert sharing_ranks.share_of_rank(9, 4) == 12
