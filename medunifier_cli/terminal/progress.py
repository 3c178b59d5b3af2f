"""What a person sees of a long job: a tqdm bar on a terminal, plain lines otherwise, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from medunifier_cli.distributed import world

SHOWN = ("total", "itc", "itm", "itg", "tig", "loss", "accuracy", "auroc")
"""Numbers shown, in this order; all others are in `log.jsonl`."""
PLAIN_EVERY = 10.0
"""Seconds between plain lines."""


class Progress:
    """Progress over steps, on the main rank only.

    Args:
        first: steps done before.
        total: steps in all.
        unit: what is counted.
        per_unit: pairs in one of them, for the rate.
        hidden: show nothing, since results on the same terminal tell how far it is.
    """

    def __init__(
        self, first: int, total: int, unit: str = "step", per_unit: int = 1, hidden: bool = False
    ) -> None:
        self.first, self.total, self.unit, self.per_unit = first, total, unit, per_unit
        self.bar: Any = None
        self.started = self.spoke = time.monotonic()
        self.silent = hidden or not world.is_main()

    def __enter__(self) -> Progress:
        if not self.silent and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.total, initial=self.first, unit=self.unit, dynamic_ncols=True, file=sys.stderr
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def move(self, done: int) -> None:
        """`done` steps lie behind."""
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def show(self, done: int, numbers: Mapping[str, float], event: str = "train") -> None:
        """Tell the latest numbers."""
        if self.silent:
            return
        text = "  ".join(f"{name} {numbers[name]:.3f}" for name in SHOWN if name in numbers)
        if self.bar is not None and event == "train":
            self.bar.set_postfix_str(text)
            return
        now = time.monotonic()
        if event == "train" and now - self.spoke < PLAIN_EVERY and done not in (1, self.total):
            return
        self.spoke = now
        rate = (done - self.first) * self.per_unit / max(now - self.started, 1e-9)
        line = f"{self.unit} {done:,}/{self.total:,}  {event}  {text}  {rate:.0f} pairs/s"
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
