"""Progress of long work on stderr: a tqdm bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from medunifier_cli.errors import one_line
from medunifier_cli.terminal.output import quiet
from medunifier_cli.terminal.say import WARNING

PLAIN_EVERY = 10.0
"""Seconds between plain lines, as a log file of SLURM gets them."""
BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {unit}s{postfix}"
"""Ten characters of bar, however much is told beside it; the rate and the time left are in the postfix."""


class Progress:
    """Progress over a known or unknown number of units.

    Args:
        total: number of units; None if unknown.
        unit: what is counted, in the singular.
        first: units finished before, by an earlier call.
        rate_unit: what the rate counts, in the plural; by default the unit.
        per_unit: number of `rate_unit` in one unit.
        edges: off a terminal also print the first unit and the last, so that a log shows at once that work
            has begun and how fast; otherwise work of less than ten seconds prints nothing.
        hidden: show nothing: on ranks other than the main one, or where the results appear on the same
            terminal one by one. With `-q` only warnings are shown.
    """

    def __init__(
        self, total: int | None, unit: str, *, first: int = 0, rate_unit: str = "", per_unit: int = 1,
        edges: bool = False, hidden: bool = False,
    ) -> None:  # fmt: skip
        self.total, self.unit, self.per_unit, self.edges, self.hidden = total, unit, per_unit, edges, hidden
        self.silent = hidden or quiet()
        self.rate_unit = rate_unit or f"{unit}s"
        self.first = self.done = first
        self.skipped = first
        """Units that are done but took no time here, and so do not count towards the rate."""
        self.note = ""
        self.bar: Any = None
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> Progress:
        self.started = self.printed = time.monotonic()
        if not self.silent and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.total, initial=self.done, unit=self.unit, dynamic_ncols=True, file=sys.stderr,
                bar_format=BAR if self.total is not None else None,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def advance(self, done: int, note: str = "") -> None:
        """Report the number of units finished.

        Args:
            done: since the beginning of the work, `first` and skipped ones included.
            note: latest numbers, shown from now on; empty keeps the last ones.
        """
        self.done, self.note = done, note or self.note
        if self.bar is not None:
            # the bar's own rate counts units, which say little where one is a batch; and the rate and the
            # time left come before the numbers, which a narrow terminal may cut
            now = time.monotonic()
            known = self.total is not None
            pace = [self._rate(now), self._left(now)] if known or self.per_unit > 1 else []
            self.bar.set_postfix_str("  ".join(filter(None, (*pace, self.note))), refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.silent:
            due = time.monotonic() - self.printed >= PLAIN_EVERY
            if due or (self.edges and done in (self.first + 1, self.total)):
                self.say(self.line())

    def skip(self, units: int) -> None:
        """Count units as done that need no work; they do not count towards the rate."""
        self.skipped += units
        self.advance(self.done + units)

    def line(self) -> str:
        """One line of units done, latest numbers, rate, and the time that the rest will take."""
        self.printed = time.monotonic()
        of = f"/{self.total:,}" if self.total is not None else ""
        pace = (self._rate(self.printed), self._left(self.printed))
        parts = [f"{self.unit} {self.done:,}{of}", self.note, *pace]
        return "  ".join(part for part in parts if part)

    def _rate(self, now: float) -> str:
        rate = (self.done - self.skipped) * self.per_unit / max(now - self.started, 1e-9)
        shown = f"{rate:,.0f}" if rate >= 999.5 else f"{rate:.3g}"  # `.3g` writes 1e+03
        return f"{shown} {self.rate_unit}/s"

    def _left(self, now: float) -> str:
        """The time left at the mean rate so far; empty where the total is unknown, or nothing is left."""
        worked = self.done - self.skipped
        if self.total is None or worked <= 0 or self.done >= self.total:
            return ""
        return f"ETA {duration((self.total - self.done) * (now - self.started) / worked)}"

    def say(self, line: str) -> None:
        """Print a line on stderr, above the bar if there is one; clean of what a file name may bring."""
        if self.hidden or (self.silent and not line.startswith(WARNING)):
            return
        line = one_line(line)
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time as `m:ss`, `h:mm:ss`, or with days in front."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days} d {clock}" if days else clock
