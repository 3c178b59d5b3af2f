"""Plot curves as inline SVG: training as a solid line, validation as a dashed one, with ticks and a legend.

A curve most of which is squeezed against its lower end gets a logarithmic axis. Colours are classes of
`templates/style.css`, so that one plot serves light and dark mode, which a saved picture would not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Curve = Sequence[tuple[float, float]]
"""(step, value)."""

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 24
"""Pixels around the plot, for the numbers."""
MOST_POINTS = 300
"""Points of a curve that are drawn; of more, means of neighbours."""
SQUEEZED, DECADE = 0.15, 8.0
"""The axis is logarithmic where the median is in the lowest 15 % of the range, and the largest value 8 times
the smallest or more."""
NAMES = {"train": "training", "valid": "validation"}


@dataclass(frozen=True)
class _Axis:
    """Values -> pixels."""

    low: float
    high: float
    logarithmic: bool

    def top(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return HEIGHT - BOTTOM - (at - low) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return _round_numbers(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            found = [m * 10.0**e for e in decades for m in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) >= 3:
                break
        return found[:: -(-len(found) // 6)]


def plot(title: str, curves: Mapping[str, Curve]) -> Markup:
    """One figure with its heading, legend and the first and last value of each curve.

    Args:
        curves: by `train` and `valid`, which are classes of the style sheet.

    Raises:
        ValueError: the curves have no point.
    """
    drawn = {name: _thinned(curve) for name, curve in curves.items() if curve}
    points = [point for curve in drawn.values() for point in curve if math.isfinite(point[1])]
    if not points:
        raise ValueError(f"{title}: nothing to plot")
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    axis = _axis([y for _, y in points])

    def left(x: float) -> float:
        return LEFT + (x - x0) / ((x1 - x0) or 1.0) * (WIDTH - LEFT - RIGHT)

    parts = []
    for tick in axis.ticks():
        y = axis.top(tick)
        parts.append(f'<path class="grid" d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">{x0:,.0f}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">step {x1:,.0f}</text>')
    for name, curve in drawn.items():
        at = [f"{left(x):.1f},{axis.top(y):.1f}" for x, y in curve if math.isfinite(y)]
        if len(at) == 1:
            across, down = at[0].split(",")
            parts.append(f'<circle class="{escape(name)}" cx="{across}" cy="{down}" r="3"/>')
        else:
            parts.append(f'<polyline class="{escape(name)}" points="{" ".join(at)}"/>')
    ranges = [_range(name, curve) for name, curve in curves.items() if curve]
    scale = ", logarithmic axis" if axis.logarithmic else ""
    label = escape(f"{title}{scale}: {'; '.join(ranges)}")
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 32 12" aria-hidden="true"><polyline class="{escape(name)}" '
        f'points="0,6 32,6"/></svg>{escape(said)}</span>'
        for name, said in zip(drawn, ranges, strict=True)
    )
    return Markup(
        f'<figure class="plot"><h3>{escape(title)}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg><figcaption>{keys}'
        f"{'<br>logarithmic axis' if scale else ''}</figcaption></figure>"
    )


def _range(name: str, curve: Curve) -> str:
    said = NAMES.get(name, name)
    if len(curve) == 1:
        return f"{said} {curve[0][1]:.3g}"
    return f"{said} from {curve[0][1]:.3g} to {curve[-1][1]:.3g}"


def _axis(values: Sequence[float]) -> _Axis:
    low, high, ordered = min(values), max(values), sorted(values)
    middle = ordered[len(ordered) // 2]
    squeezed = low > 0 and high >= DECADE * low and middle - low <= SQUEEZED * (high - low)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return _Axis(low - margin, high + margin, False)
    return _Axis(low, high, squeezed)


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    found: list[float] = []
    for step in (m * power for m in (10, 5, 2, 1)):
        first = math.ceil(low / step - 1e-9)
        found = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
        if len(found) >= 3:
            break
    return found


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that at most `MOST_POINTS` are left."""
    size = -(-len(curve) // MOST_POINTS)
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
