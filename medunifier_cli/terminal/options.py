"""Ranges of the options that take a number: what is out of them is a usage error, before any work begins."""

from __future__ import annotations

import math
from typing import Any

import click

LARGEST = 2**63 - 1
"""Largest number of 64 bits: seeds of PyTorch and NumPy, and every count."""


class Whole(click.IntRange):
    """A whole number; the help names a bound only where a user may come near it."""

    def __init__(self, low: int, high: int = LARGEST) -> None:
        super().__init__(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return int(super().convert(value, param, ctx))

    def _describe_range(self) -> str:
        return f"x>={self.min}" if self.max == LARGEST else super()._describe_range()


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):  # a range without an end has infinity in it; every range has NaN
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def box_of(
    ctx: click.Context | None, param: click.Parameter | None, value: str | None
) -> tuple[float, float, float, float] | None:
    """A click callback: x0,y0,x1,y1, numbers from 0 on. Whether they fit an image, only the image says."""
    if value is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in value.split(","))
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not all(0 <= number < math.inf for number in (x0, y0, x1, y1)):
        raise click.BadParameter(f"{value!r} is not four numbers from 0 on, as in 10,20,110,120", ctx, param)
    return x0, y0, x1, y1


SEED = Whole(0)
LIMIT = Whole(0)
"""Only the first N; 0 for all."""
PROCESSES = Whole(1, 4096)
TEMPERATURE = Number(0, 1000)
PROBABILITY = Number(0, 1, min_open=True)
CLASSES = Whole(0, 1_000_000)
"""Words or codes that are kept; 0 for all."""
TOKENS = Whole(0, 10_000)
"""Length of a text; each run has a limit of its own below."""
