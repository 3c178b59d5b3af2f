"""Format rows as an aligned text table: words to the left, numbers to the right, no wider than a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100
"""Columns that a table may take."""
NARROWEST = 16
"""Characters to which a column of words may be narrowed; its longer cells are continued in further lines."""


def text_table(
    rows: Sequence[Sequence[str]], words: int = 1, gap: str = "  ", width: int = WIDTH
) -> list[str]:
    """Aligned lines without trailing blanks.

    A table that is too wide first gets narrower columns of words. If that is not enough it becomes several
    tables below each other, which have all columns of words, and as many of the others as fit.

    Args:
        rows: cells as text, every row of the same length; the first one is repeated in each table.
        words: number of columns, from the first, that are aligned to the left.
        gap: between two columns.
        width: characters that a line may have.

    Returns:
        A line for each row, or more.
    """
    if not rows:
        return []
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    widths[:words] = _narrowed(widths[:words], width - _taken(widths[words:], gap), len(gap))
    lines: list[str] = []
    for columns in _blocks(widths, words, len(gap), width):
        own = [[row[i] for i in (*range(words), *columns)] for row in rows]
        fitted = [*widths[:words], *(widths[i] for i in columns)]
        lines += [""] if lines else []
        for row in own:
            lines += _lines(row, fitted, words, gap)
    return lines


def _taken(widths: Sequence[int], gap: str) -> int:
    """Characters that columns take with the gap before each."""
    return sum(width + len(gap) for width in widths)


def _narrowed(widths: list[int], room: int, gap: int) -> list[int]:
    """Widths of the columns of words, the widest made narrower until all fit or none may be narrower."""
    narrowed = list(widths)
    while narrowed and sum(narrowed) + gap * (len(narrowed) - 1) > room:
        widest = max(range(len(narrowed)), key=narrowed.__getitem__)
        if narrowed[widest] <= NARROWEST:
            break
        narrowed[widest] -= 1
    return narrowed


def _blocks(widths: Sequence[int], words: int, gap: int, width: int) -> list[list[int]]:
    """The columns that are not words, divided so that each table fits."""
    fixed = sum(widths[:words]) + gap * max(0, words - 1)
    blocks: list[list[int]] = [[]]
    used = fixed
    for column in range(words, len(widths)):
        needed = widths[column] + gap
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = fixed
        blocks[-1].append(column)
        used += needed
    return blocks


def _lines(row: Sequence[str], widths: Sequence[int], words: int, gap: str) -> list[str]:
    """One row, whose cells of words may be continued in further lines."""
    cells = [_wrapped(cell, widths[i]) if i < words else [cell] for i, cell in enumerate(row)]
    height = max(map(len, cells))
    return [
        gap.join(
            (cell[n] if n < len(cell) else "").ljust(widths[i])
            if i < words
            else (cell[n] if n < len(cell) else "").rjust(widths[i])
            for i, cell in enumerate(cells)
        ).rstrip()
        for n in range(height)
    ]


def _wrapped(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    indent = " " * (len(cell) - len(cell.lstrip()) + 2)
    return textwrap.wrap(
        cell, width, subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False
    ) or [cell]
