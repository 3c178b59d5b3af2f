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

    def _describe_range(self) -> str:
        return f"x>={self.min}" if self.max == LARGEST else super()._describe_range()


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):  # a range without an end has infinity in it; every range has NaN
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class BoxType(click.ParamType):
    """Four numbers from 0 on, x0,y0,x1,y1; whether they fit an image, only the image says."""

    name = "box"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 4 or not all(math.isfinite(number) and number >= 0 for number in numbers):
            self.fail(f"{value!r} is not four numbers from 0 on, as in 10,20,110,120", param, ctx)
        return numbers


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
