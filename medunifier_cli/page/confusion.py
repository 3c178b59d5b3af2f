"""Draw a confusion matrix as a PNG: counts, shaded by their share of the row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medunifier_cli.page.pictures import save_png

CELL, MARGIN, TEXT = 84, 16, 15
"""Pixels: edge of a cell, border, height of letters."""
PAPER, INK, DEEP = (255, 255, 255), (24, 30, 38), (8, 69, 148)
"""Colours: background, letters, a cell that holds its whole row."""


def save_confusion(counts_CC: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Rows are the truth, columns the prediction; each cell its count and its share of the row.

    Args:
        counts_CC: [C, C].
        classes: C names.
        path: of the PNG.
    """
    font = ImageFont.load_default(TEXT)
    small = ImageFont.load_default(TEXT - 3)
    names = [(name, round(font.getlength(name))) for name in classes]
    longest = max(width for _, width in names)
    left = MARGIN + TEXT + MARGIN + longest + MARGIN
    top = MARGIN + TEXT + MARGIN + longest + MARGIN
    size = CELL * len(classes)
    sheet = Image.new("RGB", (left + size + MARGIN, top + size + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((left + size / 2, MARGIN + TEXT / 2), "predicted", INK, font, anchor="mm")
    _sideways(sheet, "truth", font, (MARGIN, top + size // 2), middle=True)
    rows = counts_CC.sum(axis=1)
    for i, (name, _) in enumerate(names):
        centre = top + i * CELL + CELL / 2
        pen.text((left - MARGIN / 2, centre), name, INK, font, anchor="rm")
        _sideways(sheet, name, font, (left + i * CELL + CELL // 2 - TEXT // 2 - 2, top - MARGIN // 2))
        for j in range(len(classes)):
            share = counts_CC[i, j] / rows[i] if rows[i] else 0.0
            fill = tuple(round(p + (d - p) * share) for p, d in zip(PAPER, DEEP, strict=True))
            ink = PAPER if share > 0.5 else INK
            x, y = left + j * CELL, top + i * CELL
            pen.rectangle((x, y, x + CELL, y + CELL), fill, outline=(190, 196, 204))
            pen.text((x + CELL / 2, y + CELL / 2 - 8), f"{counts_CC[i, j]:,}", ink, font, anchor="mm")
            pen.text((x + CELL / 2, y + CELL / 2 + 14), f"{share:.0%}", ink, small, anchor="mm")
    save_png(sheet, path)


def _sideways(
    sheet: Image.Image, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, at: tuple[int, int],
    middle: bool = False,
) -> None:  # fmt: skip
    """Text from bottom to top: its left edge and its lower end (or its middle) at `at`."""
    width = round(font.getlength(text)) + 2
    strip = Image.new("RGB", (width, TEXT + 6), PAPER)
    ImageDraw.Draw(strip).text((1, (TEXT + 6) / 2), text, INK, font, anchor="lm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(turned, (at[0], at[1] - (width // 2 if middle else width)))
