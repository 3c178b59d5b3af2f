"""Stop training at the end of the current step, a validation at its next batch, and the wait for a batch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from medunifier_cli.distributed import world
from medunifier_cli.stopping import StopRequest, handled
from medunifier_cli.terminal.say import say

B = TypeVar("B")

MOST_STEPS, MOST_SECONDS = 10, 5.0
"""Between two looks at whether a signal has come to any of several GPUs; whichever is sooner."""
PATIENCE = 60.0
"""Seconds that a rank waits for its batch after a signal, before it ends without saving."""


class Watch(Protocol):
    """Passes batches on, and ends a validation where a signal has come; `iter` where nothing is watched."""

    def __call__(self, batches: Iterable[B], /) -> Iterator[B]: ...


class TrainingStop:
    """Whether a signal has come, and which; ends the wait for a batch when one comes."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._waiting = self._alone = False
        self._limit: threading.Timer | None = None

    def __bool__(self) -> bool:
        return bool(self._request)

    @property
    def signal(self) -> str:
        """Name of the first signal, empty before there is one."""
        return self._request.signal

    def until_stopped(self, batches: Iterator[B], alone: bool) -> Generator[B, None, None]:
        """The batches, up to the one that is still waited for when a signal comes.

        Args:
            alone: this process is the only rank. One of several may not leave the others, who wait for it in
                the step's collective operations: it waits on for its batch, but not for ever.
        """
        self._alone = alone
        while True:
            try:
                self._waiting = True
                if self:
                    self.end_wait()  # the signal came since the loop last looked
                batch = next(batches, None)
                self._waiting = False
            except _WaitEndedError:
                return
            finally:
                self._waiting = False
                if self._limit is not None:
                    self._limit.cancel()
                    self._limit = None
            if batch is None:
                return
            yield batch

    def watch(self, alone: bool, agree: Callable[[bool], bool]) -> Watch:
        """What a validation passes its batches through.

        Args:
            alone: this process is the only rank.
            agree: whether any rank has got a signal; all ranks ask at the same batch. A rank that left by
                itself would leave the others waiting.

        Raises:
            ValidationEndedError: in the validation, at a batch, on all ranks.
        """

        def watched(batches: Iterable[B], /) -> Iterator[B]:
            for batch in self.until_stopped(iter(batches), alone):
                if agree(bool(self)):
                    raise ValidationEndedError
                yield batch
            if alone and self:
                raise ValidationEndedError

        return watched

    def end_wait(self, _: int = 0) -> None:
        """Leave the wait for a batch, if there is one: what a signal does."""
        # A handler runs between any two instructions, in the middle of an optimiser step or of a checkpoint.
        # So it takes a note and no more, except in the wait for a batch, where the run's state is whole;
        # elsewhere the loop acts on the note at the end of the step.
        if not self._waiting:
            return
        if self._limit is None:
            # alone, too: an exception that comes while a library cleans up is lost
            self._limit = threading.Timer(PATIENCE, self._give_up)
            self._limit.daemon = True
            self._limit.start()
        if self._alone:
            self._waiting = False
            raise _WaitEndedError

    def _give_up(self) -> None:
        say(
            f"no batch came within {PATIENCE:.0f} s of {self.signal}; the same command resumes from the "
            "last checkpoint"
        )
        os._exit(self._request.exit_code)  # from a thread: the main one hangs, and other ranks wait for it


class AnyStop:
    """Whether a signal has come to any rank, asked after each step and answered alike on all ranks.

    GPUs are asked every few steps only: the answer ends the CPU's lead over them, in which it prepares the
    next step. How many steps that may be, ranks agree on with each answer, by how long their steps took.

    Args:
        device: of the ranks' tensors.
        first: steps that were done before.
    """

    def __init__(self, device: torch.device, first: int) -> None:
        self._device = device
        self._asked, self._since, self._every = first, time.monotonic(), 1

    def __call__(self, stopped: bool, done: int) -> bool:
        """Whether the run stops after step `done`.

        Args:
            stopped: a signal has come to this rank.
        """
        if world.size() == 1:
            return stopped
        steps = done - self._asked
        if steps < self._every:
            return False
        now = time.monotonic()
        said = torch.tensor([float(stopped), (now - self._since) / steps])
        stopping, seconds = (world.all_sum(said.to(self._device)) / world.size()).tolist()
        self._asked, self._since = done, now
        if self._device.type == "cuda":
            self._every = min(MOST_STEPS, max(1, int(MOST_SECONDS / max(seconds, 1e-6))))
        return bool(stopping > 0)


class ValidationEndedError(BaseException):
    """A signal ended a validation, which has no numbers then. No Exception: libraries would treat it."""


class _WaitEndedError(BaseException):
    """A signal came while a batch was waited for. No Exception: libraries on the way up would treat it."""


@contextmanager
def stop_on_signals() -> Iterator[TrainingStop]:
    """Collect signals instead of ending at once. A second Ctrl-C, a second later, interrupts at once.

    Yields:
        True as soon as a signal has come; the loop asks for it after each step.
    """
    with handled() as request:
        stop = TrainingStop(request)
        with request.collecting(stop.end_wait):
            yield stop
