"""Format rows as an aligned text table: words to the left, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], words: int = 1, gap: str = "  ") -> list[str]:
    """Aligned lines without trailing blanks.

    Args:
        rows: cells as text, every row of the same length; a header is a row like any other.
        words: number of columns, from the first, that are aligned to the left.
        gap: between two columns.

    Returns:
        A line for each row.
    """
    if not rows:
        return []
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
