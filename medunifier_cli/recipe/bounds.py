"""Ranges of the numbers in a recipe, as metadata of their types; `build.py` checks them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """The closed interval of allowed values; `above` excludes `low` itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False


Share = Annotated[float, Bounds(0, 1)]
Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
NonNegative = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(0, above=True)]
