"""Curves with intervals in panels, as one SVG without a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLUMNS = 3
WIDTH, HEIGHT = 300, 220
"""Pixels of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 30, 36
"""Pixels around a plot, for the words."""
LINE = 18
"""Pixels of a line of the legend."""
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5572", "#b98b1f", "#4a4e69", "#2a9d8f", "#7a3b1d")

Point = tuple[float, float, float, float]
"""x, value, and the ends of its interval; equal to the value where it has none."""


@dataclass(frozen=True)
class Panel:
    """One measure."""

    title: str
    curves: Mapping[str, Sequence[Point]]
    """Name -> points in ascending order of x."""
    line: float | None = None
    """A value to compare with, drawn across."""


def picture(panels: Sequence[Panel], across: str, line: str) -> str:
    """All panels as one SVG, with a legend below.

    Args:
        across: what the x axis is.
        line: what the dashed line is.

    Raises:
        ValueError: a panel has no point.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    colour = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    rows = -(-len(panels) // COLUMNS)
    parts = []
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        inside = "".join(_panel(panel, colour, across))
        parts.append(f'<g transform="translate({column * WIDTH},{row * HEIGHT})">{inside}</g>')
    below = rows * HEIGHT
    for number, name in enumerate([*names, line]):
        y = below + LINE * (number + 1)
        style = f'stroke="{colour[name]}"' if name in colour else 'stroke="#555" stroke-dasharray="5 4"'
        parts.append(f'<path d="M{LEFT},{y - 4} h28" stroke-width="2" {style}/>')
        parts.append(f'<text x="{LEFT + 36}" y="{y}">{escape(name)}</text>')
    tall = below + LINE * (len(names) + 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * WIDTH} {tall}" font-size="11" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _panel(panel: Panel, colour: Mapping[str, str], across: str) -> list[str]:
    points = [point for curve in panel.curves.values() for point in curve]
    if not points:
        raise ValueError(f"{panel.title}: nothing to plot")
    levels = [end for point in points for end in point[1:]] + ([] if panel.line is None else [panel.line])
    x0, x1 = min(point[0] for point in points), max(point[0] for point in points)
    y0, y1 = min(levels), max(levels)
    wide, tall = (x1 - x0) or 1.0, (y1 - y0) or 1.0
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - x0) / wide * (right - LEFT), bottom - (y - y0) / tall * (bottom - TOP)

    out = [
        f'<text x="{LEFT}" y="{TOP - 12}" font-weight="bold">{escape(panel.title)}</text>',
        f'<path d="M{LEFT},{TOP} V{bottom} H{right}" fill="none" stroke="#999"/>',
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{y1:.3g}</text>',
        f'<text x="{LEFT - 4}" y="{bottom}" text-anchor="end">{y0:.3g}</text>',
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>',
    ]
    out += [
        f'<text x="{at(x, y0)[0]:.1f}" y="{bottom + 14}" text-anchor="middle">{x:g}</text>'
        for x in sorted({point[0] for point in points})
    ]
    if panel.line is not None:
        y = at(x0, panel.line)[1]
        out.append(f'<path d="M{LEFT},{y:.1f} H{right}" stroke="#555" stroke-dasharray="5 4"/>')
    for name, curve in panel.curves.items():
        path = " ".join("{:.1f},{:.1f}".format(*at(x, value)) for x, value, _, _ in curve)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour[name]}" stroke-width="2"/>')
        for x, value, low, high in curve:
            (left, mark), over, under = at(x, value), at(x, high)[1], at(x, low)[1]
            out.append(
                f'<path d="M{left:.1f},{over:.1f} V{under:.1f}" stroke="{colour[name]}" opacity="0.5"/>'
                f'<circle cx="{left:.1f}" cy="{mark:.1f}" r="2.5" fill="{colour[name]}"/>'
            )
    return out
