"""Contact sheets: some images of a split with their texts and labels, to inspect before training on it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from medunifier_cli.files import atomic_write

COLUMNS, ROWS = 6, 4
TILE = 200
"""Edge of an image, in pixels."""
LINES = 3
"""Lines of text under an image: two of the report, one of the labels."""
FONT_SIZE, LINE_HEIGHT, GAP = 11, 14, 6
"""In pixels."""
PAPER, INK, FAINT = 250, 20, 110
"""Grey levels of background, report and labels."""


def write_sheet(shards: Shards, text_sections: Sequence[str], path: Path) -> None:
    """Write up to 24 samples, evenly spread over the split, each with the start of its text and its labels.

    Args:
        shards: a split of at least one sample.
        text_sections: the first of these sections that is not empty is shown.

    Raises:
        DataError: the disk is full, or a shard cannot be read.
    """
    # `unique`: a small split would show the same sample several times.
    samples = np.unique(np.linspace(0, len(shards) - 1, COLUMNS * ROWS).round().astype(int)).tolist()
    columns = min(COLUMNS, len(samples))
    rows = -(-len(samples) // columns)
    cell_width, cell_height = TILE + GAP, TILE + LINES * LINE_HEIGHT + 2 * GAP
    sheet = Image.new("L", (columns * cell_width + GAP, rows * cell_height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for cell, i in enumerate(samples):
        left = GAP + cell % columns * cell_width
        top = GAP + cell // columns * cell_height
        body, meta = shards.read(i)
        try:
            with Image.open(io.BytesIO(body), formats=("PNG", "JPEG")) as image:
                sheet.paste(image.convert("L").resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        except Exception as error:  # decoders raise all kinds of errors: a shard of another part was damaged
            raise DataError(f"{shards.where(i)}: damaged image; run `mu prepare` again") from error
        sections = meta.get("sections") or {}
        text = next((" ".join(sections[n].split()) for n in text_sections if sections.get(n)), "(no text)")
        top += TILE + 2
        for line, ink in [*((line, INK) for line in _lines(text, font)), (_labels(meta), FAINT)]:
            draw.text((left, top), _fit(line, font), fill=ink, font=font)
            top += LINE_HEIGHT
    with atomic_write(path) as file:
        sheet.save(file, "PNG", compress_level=1, compress_type=3)  # run-length coding, see render.PNG


def _labels(meta: Mapping[str, Any]) -> str:
    """The view, positive labels, and uncertain ones with a question mark; nothing where there is none."""
    labels = meta.get("labels") or {}
    named = [name for name, value in labels.items() if value == 1]
    named += [f"{name}?" for name, value in labels.items() if value == -1]
    parts = [f"[{meta['view']}]"] if meta.get("view") else []
    if labels:
        parts.append(", ".join(named) or "no positive label")
    return " ".join(parts)


def _lines(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The first two lines of the wrapped text; the second may be too long, see `_fit`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE:
            lines[-1] = longer
        elif len(lines) == LINES - 1:
            lines[-1] = longer
            break
        else:
            lines.append(word)
    return lines + [""] * (LINES - 1 - len(lines))


def _fit(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The line, shortened to the width of an image if it is longer."""
    if font.getlength(line) <= TILE:
        return line
    while line and font.getlength(line + "...") > TILE:
        line = line[:-1]
    return line + "..."
