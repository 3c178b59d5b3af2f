"""Pairs of ranks that share work, one pair for each case of `test_sharing`.

python -m tests.unit.evaluate.sharing_ranks OUT

The main rank of each pair runs a case; see `tests.unit.distributed.ranks` for what is in OUT.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.shared.sharing import (
    each,
    everywhere,
    known_everywhere,
    on_all_ranks,
    share_of_rank,
)
from tests.unit.distributed.ranks import main


def here() -> int:
    """Rank of this process."""
    return int(os.environ["RANK"])


def square(number: int) -> tuple[int, int]:
    return number * number, here()


def in_turn() -> None:
    print(list(each(square, range(5))), list(each(square, [])), share_of_rank(9, 4))


def fail_at(error: Exception, at: int, number: int) -> tuple[int, int]:
    if number == at:
        raise error
    return square(number)


def damaged(at: int) -> None:
    for found in each(partial(fail_at, DataError("shard-7.tar: damaged"), at), range(6)):
        print(found[0])


def told_and_over() -> None:
    """The verb can go on after an error of another rank."""
    with suppress(DataError):
        damaged(3)
    in_turn()


def given_up() -> None:
    """As where a disk is full, and all is computed anew."""
    share = each(square, range(100))
    print(next(share), next(share), next(share))
    share.close()
    in_turn()


def crossed() -> None:
    """One share within another would lose parts of it."""
    for _ in each(square, range(9)):
        next(each(square, range(9)))


def load(fails: int) -> str:
    if here() == fails:
        raise DataError("weights.pth: damaged")
    return "loaded"


def not_loaded(fails: int) -> None:
    try:
        everywhere(load, fails)
    except MuError as error:
        print(error)
    in_turn()


class Network(nn.Module):
    """A network that cannot travel."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.part = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.part.weight, factor * (1 + here()))

    def __reduce__(self) -> Any:
        raise AssertionError("it travels")


def times(part: nn.Module, number: float) -> float:
    with torch.no_grad():
        return float(part(torch.tensor([number])))


def own_networks() -> None:
    """Each rank computes with the network that it has loaded; here they differ."""
    networks = everywhere(named, 2.0)
    print(list(each(partial(times, networks[1][0].part), [1.0, 1.0, 1.0])))


def named(factor: float) -> tuple[str, list[Network]]:
    return "the network", [Network(factor)]


def by_reference() -> None:
    """What all ranks know does not travel again, as part of other work."""
    value = known_everywhere(Given())
    print(list(each(partial(tell, value), range(3))), Given.travelled)


class Given:
    """Counts how often it is pickled."""

    travelled = 0

    def __getstate__(self) -> dict[str, Any]:
        Given.travelled += 1
        return {}


Given.__module__ = "medunifier_cli.given"
sys.modules["medunifier_cli.given"] = sys.modules[__name__]


def tell(value: Given, number: int) -> tuple[str, int]:
    return type(value).__name__, number


def foreign_network() -> None:
    print(list(each(partial(times, nn.Linear(1, 1)), [1.0])))


def kill(number: int) -> None:
    if here() == 1 and number > 2:
        os.kill(os.getpid(), signal.SIGKILL)


def interrupt(number: int) -> None:
    if here() == 0 and number > 2:
        os.kill(os.getpid(), signal.SIGINT)


def main_fails() -> None:
    in_turn()
    raise DataError("results.json: no space left")


CASES: dict[str, Callable[[], object]] = {
    "in_turn": in_turn,
    "damaged_on_main": partial(damaged, 2),
    "damaged_on_another": partial(damaged, 3),
    "told_and_over": told_and_over,
    "given_up": given_up,
    "crossed": crossed,
    "not_loaded_on_main": partial(not_loaded, 0),
    "not_loaded_on_another": partial(not_loaded, 1),
    "own_networks": own_networks,
    "by_reference": by_reference,
    "foreign_network": foreign_network,
    "a_bug": lambda: list(each(partial(fail_at, ValueError("a report"), 3), range(6))),
    "killed": lambda: list(each(kill, range(9))),
    "interrupted": lambda: list(each(interrupt, range(9))),
    "main_fails": main_fails,
}


def work(case: str) -> None:
    on_all_ranks(CASES[case])


if __name__ == "__main__":
    # ignored in tests that a shell has started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]), CASES, work)
