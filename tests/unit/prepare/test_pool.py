"""Processes that answer in order: dead ones, failing tasks, large messages."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from medunifier_cli.errors import DataError, MuError
from medunifier_cli.prepare.pool import AHEAD, ordered_map


def slow_square(x: int) -> int:
    time.sleep(0.01 if x % 3 else 0)
    return x * x


def fail_at_7(x: int) -> int:
    if x == 7:
        raise DataError("seven: is no good")
    return x


def die_at_7(x: int) -> int:
    if x == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def echo(x: bytes) -> bytes:
    return x


class Stubborn(Exception):
    """Does not survive pickling."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("text of a patient")


def stubborn(x: int) -> int:
    raise Stubborn(1, 2)


def numbered(n: int) -> Iterator[tuple[str, int]]:
    return ((f"n{i}", i) for i in range(n))


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 40])
def test_answers_come_in_order(workers: int) -> None:
    assert list(ordered_map(slow_square, numbered(30), workers)) == [(f"n{i}", i * i) for i in range(30)]
    assert not children()


def test_tasks_are_read_only_as_far_ahead_as_needed() -> None:
    taken = 0

    def stream() -> Iterator[tuple[str, int]]:
        nonlocal taken
        for pair in numbered(1000):
            taken += 1
            yield pair

    answers = ordered_map(slow_square, stream(), 2)
    next(answers)
    assert taken == 2 * AHEAD
    answers.close()
    assert not children()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_reaches_the_caller(workers: int) -> None:
    with pytest.raises(DataError, match="seven: is no good"):
        list(ordered_map(fail_at_7, numbered(30), workers))
    assert not children()


def test_a_dead_worker_is_one_line() -> None:
    with pytest.raises(MuError, match=r"a decoding process died, .* with fewer --workers"):
        list(ordered_map(die_at_7, numbered(30), 2))
    assert not children()


def test_an_error_that_does_not_pickle_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"^Stubborn$"):
        list(ordered_map(stubborn, numbered(3), 2))


def test_a_task_that_does_not_pickle_ends_the_work() -> None:
    tasks: list[tuple[int, Any]] = [(0, 1), (1, lambda: 0)]
    with pytest.raises(Exception, match="pickle"):
        list(ordered_map(slow_square, tasks, 2))
    assert not children()


def test_messages_larger_than_a_pipe_in_both_directions() -> None:
    tasks = [(i, bytes([i]) * 3_000_000) for i in range(12)]
    assert list(ordered_map(echo, tasks, 2)) == tasks
