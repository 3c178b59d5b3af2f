"""The line about ranks that differ: who, in what, and how many more."""

from __future__ import annotations

from typing import Any

import pytest

from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import agree, difference, together
from medunifier_cli.distributed.meeting import names
from medunifier_cli.errors import DataError, GroupError, MuError, explain

FACTS: dict[str, dict[str, Any]] = {
    "the recipe": {"optim.peak_lr": 0.0001, "train.steps": 5},
    "the code": {"torch": "2.9"},
}


def facts(**changes: Any) -> dict[str, dict[str, Any]]:
    return {"the recipe": {**FACTS["the recipe"], **changes}, "the code": FACTS["the code"]}


def test_who_differs_in_what() -> None:
    assert difference([FACTS, FACTS, FACTS]) == ""
    line = difference([FACTS, FACTS, facts(**{"optim.peak_lr": 0.001})])
    assert line.startswith("rank 2 differs from rank 0 in the recipe: optim.peak_lr 0.001, not 0.0001; start")
    both = [FACTS, facts(a=1, b=2, c=3, d=4), facts(a=1, b=2, c=3, d=4)]
    assert difference(both).startswith(
        "ranks 1 and 2 differ from rank 0 in the recipe: a 1, not none; b 2, not none; c 3, not none and 1 m"
    )
    assert "rank 1 differs from rank 0 in the code: torch none, not 2.9;" in difference(
        [FACTS, {"the recipe": FACTS["the recipe"]}]
    )


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([3], "rank 3"), ([1, 2], "ranks 1 and 2"), ([1, 2, 5], "ranks 1, 2 and 5"),
     ([1, 2, 3, 4, 5, 6], "ranks 1, 2, 3, 4 and 2 more")],
)  # fmt: skip
def test_ranks_in_words(ranks: list[int], words: str) -> None:
    assert names(ranks) == words


def of_rank(monkeypatch: pytest.MonkeyPatch, rank: int, rows: list[Any]) -> None:
    """This process as one rank of several, with what all of them say."""
    monkeypatch.setattr(world, "size", lambda: len(rows))
    monkeypatch.setattr(world, "is_main", lambda: rank == 0)
    monkeypatch.setattr(world, "exchange", lambda value: rows)


def broken() -> None:
    raise DataError("shards: not there")


@pytest.mark.parametrize(
    ("failed", "line"),
    [([1], "rank 1: shards: not there"), ([1, 2], "ranks 1 and 2: shards: not there"),
     ([0, 1, 2], "shards: not there"), ([0], "shards: not there")],
)  # fmt: skip
@pytest.mark.parametrize("rank", [0, 1])
def test_one_line_for_all_ranks_from_the_first(
    monkeypatch: pytest.MonkeyPatch, failed: list[int], line: str, rank: int
) -> None:
    of_rank(
        monkeypatch, rank, [["shards: not there", 1] if number in failed else None for number in range(3)]
    )
    with pytest.raises(MuError) as caught:
        together(broken if rank in failed else lambda: None)
    assert str(caught.value) == line
    assert explain(caught.value) == ([line] if rank == 0 else [], 1)
    assert caught.value.of_all_ranks


def test_alone_the_error_is_the_works_own() -> None:
    with pytest.raises(DataError) as caught:
        together(broken)
    assert (str(caught.value), caught.value.of_all_ranks) == ("shards: not there", False)
    assert agree(lambda: (7, FACTS)) == 7


def test_a_difference_ends_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([[None, None], [FACTS, facts(seed=1)]])
    of_rank(monkeypatch, 1, [None, None])
    monkeypatch.setattr(world, "exchange", lambda value: next(rows))
    with pytest.raises(
        GroupError, match="rank 1 differs from rank 0 in the recipe: seed 1, not none"
    ) as caught:
        agree(lambda: (None, FACTS))
    assert caught.value.reported
