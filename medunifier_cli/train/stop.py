"""Turn signals into a request to stop at the end of the current training step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""A scheduler ends the job, a scheduler warns before it does, and Ctrl-C."""


class StopRequest:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal: str = ""

    def __bool__(self) -> bool:
        return bool(self.signal)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Collect signals instead of ending at once. A second Ctrl-C interrupts at once.

    Yields:
        True as soon as a signal has come; the loop asks for it after each step.
    """
    request = StopRequest()

    # A handler runs between any two instructions, in the middle of an optimiser step or of a checkpoint. So
    # it takes a note and no more; the loop acts on it where the run's state is whole.
    def record(number: int, frame: FrameType | None) -> None:
        # Ctrl-C alone: the same SIGTERM may come twice, from the scheduler and from the launcher
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    before = {number: signal.signal(number, record) for number in SIGNALS}
    try:
        yield request
    finally:
        # the evaluation that follows training has nothing to save, and should end at once again
        for number, handler in before.items():
            signal.signal(number, handler)
