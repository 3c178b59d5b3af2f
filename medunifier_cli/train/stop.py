"""Signals that ask a run to stop at the end of the step it is in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""A scheduler's end, its warning before the end, and Ctrl-C."""


class StopRequest:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal: str = ""

    def __bool__(self) -> bool:
        return bool(self.signal)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Collect signals instead of dying from them. A second Ctrl-C interrupts at once."""
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
