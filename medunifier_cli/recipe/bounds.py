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
Size = Annotated[int, Bounds(1, 65536)]
"""Width, number of heads or edge in pixels; no model comes near its end, and a typing error does."""
SizeOrZero = Annotated[int, Bounds(0, 65536)]
Depth = Annotated[int, Bounds(1, 64)]
"""Number of blocks or layers: building a thousand takes minutes, even without memory in `mu check`."""
DepthOrZero = Annotated[int, Bounds(0, 64)]
Samples = Annotated[int, Bounds(1, 1_000_000)]
"""Samples of one step."""
SamplesOrZero = Annotated[int, Bounds(0, 1_000_000)]
Processes = Annotated[int, Bounds(0, 4096)]
"""Processes or threads of one machine."""
Pairs = Annotated[int, Bounds(0, 5000)]
"""Pairs that are ranked all against all: 11 s on one core at the end of the range."""
Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
NonNegative = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(0, above=True)]
