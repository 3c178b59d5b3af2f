"""Make all ranks agree before they train: where they differ or one cannot start, one line says who and why.

Ranks that disagree fail late and unclearly: other rates train to the end on averages of two recipes, another
number of validations waits for ever, another width ends in an error about shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from medunifier_cli.distributed import world
from medunifier_cli.distributed.meeting import names
from medunifier_cli.errors import GroupError, MuError

T = TypeVar("T")

Facts = Mapping[str, Mapping[str, Any]]
"""Subject, such as `the recipe` -> key -> value; all fit JSON."""
SHOWN = 3
"""Differences that the line names."""
ADVICE = "start all ranks by the same command, on the same code and data"


def together(work: Callable[[], T]) -> T:
    """Do a piece of work that may fail on every rank; where it fails on one, all ranks end with its line.

    Raises:
        MuError: of the work; on other ranks than the first it counts as reported.
    """
    result: T | None = None
    own: MuError | None = None
    try:
        result = work()
    except MuError as error:
        own = error
    if world.size() == 1:
        if own is not None:
            raise own
    else:
        _raise_any(own, world.exchange(None if own is None else [str(own), own.exit_code]))
    return result  # type: ignore[return-value]


def agree(work: Callable[[], tuple[T, Facts]]) -> T:
    """Do a piece of work on every rank, and compare the facts that it returns with those of rank 0.

    Returns:
        The first of what `work` returns.

    Raises:
        MuError: the work failed on some rank.
        GroupError: the facts differ.
    """
    # first that all can start at all: a rank without shards has no facts to compare
    result, facts = together(work)
    rows = world.exchange(facts)
    if line := difference(rows):
        raise _of_all(GroupError(line))
    return result


def difference(rows: list[Facts]) -> str:
    """Who differs from rank 0 in what, as one line; empty if nobody does."""
    differing: dict[str, list[int]] = {}
    for rank, facts in enumerate(rows):
        if found := _differences(rows[0], facts):
            differing.setdefault(found, []).append(rank)
    # ranks of one node are wrong alike; the first of several kinds is enough to start with
    for found, ranks in differing.items():
        verb = "differs" if len(ranks) == 1 else "differ"
        return f"{names(ranks)} {verb} from rank 0 in {found}; {ADVICE}"
    return ""


def _differences(first: Facts, other: Facts) -> str:
    for subject in first:
        here, there = other.get(subject, {}), first[subject]
        keys = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
        if keys:
            shown = [f"{key} {_text(here.get(key))}, not {_text(there.get(key))}" for key in keys[:SHOWN]]
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            return f"{subject}: {'; '.join(shown)}{more}"
    return ""


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _raise_any(own: MuError | None, rows: list[list[Any] | None]) -> None:
    """Raise the error of the first rank that has one, on all ranks."""
    failed = [rank for rank, row in enumerate(rows) if row is not None]
    if not failed:
        return
    line, code = rows[failed[0]]  # type: ignore[misc]
    alike = [rank for rank in failed if rows[rank] == rows[failed[0]]]
    # what every rank says, or rank 0 alone, is about the run; anything else is about one machine
    if failed[0] != 0:
        line = f"{names(alike)}: {line}"
    error = type(own)(line) if own is not None else GroupError(line)
    error.exit_code = code
    raise _of_all(error) from own


def _of_all(error: MuError) -> MuError:
    error.of_all_ranks, error.reported = True, not world.is_main()
    return error
