"""Training acts on a signal at the end of a step; waits for a batch and validations end before that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from medunifier_cli.distributed import world
from medunifier_cli.stopping import SIGNALS
from medunifier_cli.train import stop
from medunifier_cli.train.stop import AnyStop, ValidationEndedError, Watch, stop_on_signals
from tests import warm


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_named(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number.name
    assert signal.getsignal(number) is before


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="in the step"), stop_on_signals():
        raise ValueError("in the step")
    assert [signal.getsignal(number) for number in SIGNALS] == before


HANGING = """
import os, signal, threading, time
from medunifier_cli.train import stop
stop.PATIENCE = 1.0
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
def batches():
    yield 1
    while True:
        try:
            time.sleep(600)
        except BaseException:  # as a library may do in its clean-up
            pass
with stop.stop_on_signals() as request:
    for batch in request.until_stopped(batches(), alone=ALONE):
        print(batch, flush=True)
"""


@pytest.mark.parametrize("alone", [True, False])
def test_a_batch_that_never_comes_is_not_waited_for_for_ever_after_a_signal(alone: bool) -> None:
    """One rank of several may not leave the others alone in a step, and they cannot go on without it."""
    started = time.monotonic()
    code = HANGING.replace("ALONE", str(alone))
    result = warm.run(["-c", code], timeout=120)
    assert time.monotonic() - started > 1.0
    assert (result.returncode, result.stdout) == (75, "1\n")
    assert result.stderr.startswith("mu: no batch came within 1 s of SIGTERM; the same command resumes")


def test_one_rank_of_several_takes_the_batch_that_comes_after_a_signal() -> None:
    def batches() -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield 1

    with stop_on_signals() as stop:
        assert list(stop.until_stopped(batches(), alone=False)) == [1]
        assert stop


def test_a_validation_of_one_rank_ends_while_it_waits_for_a_batch() -> None:
    def batches() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGTERM)
        yield 2

    with stop_on_signals() as stop:
        watched = stop.watch(alone=True, agree=bool)(batches())
        assert next(watched) == 1
        with pytest.raises(ValidationEndedError):
            next(watched)


def test_a_validation_of_several_ranks_ends_at_the_batch_at_which_all_agree() -> None:
    asked: list[bool] = []

    def agree(flag: bool) -> bool:
        asked.append(flag)
        return len(asked) == 3  # the signal came to another rank

    seen: list[int] = []

    def validate(watch: Watch) -> None:
        for batch in watch(range(9)):
            seen.append(batch)
            if batch == 0:
                os.kill(os.getpid(), signal.SIGUSR1)

    with stop_on_signals() as stop, pytest.raises(ValidationEndedError):
        validate(stop.watch(alone=False, agree=agree))
    assert seen == [0, 1]  # and not before that, although this rank has a signal since batch 0
    assert asked == [False, True, True]


def test_a_validation_without_a_signal_is_whole() -> None:
    with stop_on_signals() as stop:
        assert list(stop.watch(alone=True, agree=bool)(range(5))) == [0, 1, 2, 3, 4]


class TwoRanks:
    """In place of the other rank of two: it takes as long as this one, and may have got a signal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.signalled, self.now = 0, False, 0.0
        monkeypatch.setattr(world, "size", lambda: 2)
        monkeypatch.setattr(world, "all_sum", self.all_sum)
        monkeypatch.setattr(stop.time, "monotonic", lambda: self.now)

    def all_sum(self, said: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return said * 2 + torch.tensor([float(self.signalled), 0.0])


class Cuda(str):
    """A device whose tensors lie on the CPU."""

    type = "cuda"


@pytest.mark.parametrize(("seconds", "asked"), [(0.1, 5), (2.0, 25), (30.0, 50)])
def test_gpus_are_asked_every_tenth_step_or_five_seconds(
    seconds: float, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = TwoRanks(monkeypatch)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)
    device: Any = Cuda()
    stops = AnyStop(device, 0)
    for done in range(1, 51):
        ranks.now += seconds
        assert not stops(stopped=False, done=done)
    assert abs(ranks.asked - asked) <= 1
    ranks.signalled = True
    waited = 0
    while not stops(stopped=False, done=51 + waited):
        waited += 1
        ranks.now += seconds
    assert waited * seconds <= stop.MOST_SECONDS
    assert waited < stop.MOST_STEPS


def test_ranks_on_cpus_are_asked_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = TwoRanks(monkeypatch)
    stops = AnyStop(torch.device("cpu"), 7)
    assert [stops(stopped=False, done=done) for done in range(8, 20)] == [False] * 12
    assert ranks.asked == 12
    assert stops(stopped=True, done=20), "this rank's own signal"
