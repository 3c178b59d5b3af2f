"""Plot curves as inline SVG without a library: training as a solid line, validation as a dashed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Curve = Sequence[tuple[float, float]]
"""(step, value)."""

WIDTH, HEIGHT = 440, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
"""Pixels around the plot, for the numbers."""


def plot(title: str, curves: Mapping[str, Curve]) -> str:
    """One figure; the keys of `curves` are the classes `train` and `valid` of the style sheet.

    Raises:
        ValueError: the curves have no point.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError(f"{title}: nothing to plot")
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(y for _, y in points), max(y for _, y in points)
    wide, tall = (x1 - x0) or 1.0, (y1 - y0) or 1.0

    def point(x: float, y: float) -> str:
        left = LEFT + (x - x0) / wide * (WIDTH - LEFT - RIGHT)
        top = HEIGHT - BOTTOM - (y - y0) / tall * (HEIGHT - TOP - BOTTOM)
        return f"{left:.1f},{top:.1f}"

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<path class="axis" fill="none" d="M{LEFT},{TOP} V{bottom} H{right}"/>',
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{y1:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">{y0:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{x0:,.0f}</text>',
        f'<text x="{right}" y="{HEIGHT - 8}" text-anchor="end">step {x1:,.0f}</text>',
    ]
    ranges = []
    for name, curve in curves.items():
        if curve:
            parts.append(f'<polyline class="{escape(name)}" points="{" ".join(point(*p) for p in curve)}"/>')
            ranges.append(f"{name} from {curve[0][1]:.3g} to {curve[-1][1]:.3g}")
    caption = f"{title}: {'; '.join(ranges)}"
    return (
        f'<figure class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(caption)}">'
        f"{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )
