"""Grey images: as grids and captioned sheets in PNG files, and inside of an HTML page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from medunifier_cli.files import atomic_write, make_folder

if TYPE_CHECKING:  # the page of a run is written without torch
    from torch import Tensor

GAP = 2
"""White pixels between the images of a grid."""
CAPTIONS = "captions"
"""Text of a grid's PNG: a JSON list with a caption for each column."""
LARGEST = 320
"""Longest edge in pixels of an image in a page, if no other is asked for."""
MOST_PIXELS = 1 << 26
"""Of a picture that is read back."""
EDGE, SPACE, LETTERS, CAPTION_LINES = 192, 16, 13, 3
"""Of a sheet: least edge of an image, space around it and height of letters in pixels; lines of a caption."""
PAPER, INK = (255, 255, 255), (24, 30, 38)


@dataclass(frozen=True)
class Shown:
    """An image inside of an HTML page."""

    source: str
    """A `data:` address, so that the page is one file."""
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Captioned:
    """An image of a sheet."""

    image_SS: NDArray[Any]
    """Levels in [0, 1]."""
    caption: str = ""


def shown(image: Image.Image | NDArray[np.uint8], alt: str, largest: int = LARGEST) -> Shown:
    """An image for a page: PNG if it is small or grey in few pixels, else JPEG; never enlarged.

    Args:
        image: Pillow's, or grey levels [H, W].
        alt: what it shows, for whoever does not see it.
        largest: longest edge in pixels.
    """
    picture = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.thumbnail((largest, largest))
    file = io.BytesIO()
    lossless = max(picture.size) <= LARGEST // 2
    if lossless:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.convert("L" if picture.mode in ("L", "1") else "RGB").save(file, "JPEG", quality=88)
    kind = "png" if lossless else "jpeg"
    encoded = base64.b64encode(file.getvalue()).decode()
    return Shown(f"data:image/{kind};base64,{encoded}", alt, picture.width, picture.height)


def save_pairs(above_BCHW: Tensor, below_BCHW: Tensor, path: Path) -> None:
    """Two rows: column b holds image b above and its counterpart below. Values in [0, 1], clamped."""
    rows = [
        images.detach().float().clamp(0, 1).mean(dim=1).cpu().numpy() for images in (above_BCHW, below_BCHW)
    ]
    save_rows([list(row) for row in rows], path)


def save_rows(
    rows: list[list[NDArray[Any]]], path: Path, captions: Sequence[str] = (), texts_of: Path | None = None
) -> None:
    """Rows of equally large grey images in [0, 1] as one PNG, which `read_columns` takes apart again.

    Args:
        captions: of the columns; kept in the file, not drawn.
        texts_of: data whose texts the captions are, see `files.atomic_write`.
    """
    height, width = rows[0][0].shape
    columns = max(len(row) for row in rows)
    sheet = np.ones((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            sheet[top : top + height, left : left + width] = image
    save_png(Image.fromarray((sheet * 255).round().astype(np.uint8)), path, captions, texts_of)


def read_columns(path: Path, rows: int) -> list[tuple[list[Image.Image], str]]:
    """The columns of a grid of square images that `save_rows` wrote: images from the top, and the caption.

    Args:
        rows: of the grid.

    Returns:
        In order; empty for a picture that is damaged, or none of such a grid.
    """
    try:
        with Image.open(path, formats=("PNG",)) as sheet:
            if sheet.width * sheet.height > MOST_PIXELS:
                return []
            captions = json.loads(sheet.info.get(CAPTIONS, "[]"))
            grey = sheet.convert("L")
    except Exception:  # decoders raise all kinds of errors on damaged files
        return []
    if not isinstance(captions, list):
        return []
    edge, rest = divmod(grey.height + GAP, rows)
    edge -= GAP
    columns, over = divmod(grey.width + GAP, edge + GAP)
    if rest or over or edge < 1:
        return []
    found = []
    for column in range(columns):
        left = column * (edge + GAP)
        tops = [row * (edge + GAP) for row in range(rows)]
        images = [grey.crop((left, top, left + edge, top + edge)) for top in tops]
        found.append((images, str(captions[column]) if column < len(captions) else ""))
    return found


def save_sheet(rows: Sequence[Sequence[Captioned]], path: Path, texts_of: Path | None = None) -> None:
    """A contact sheet for a person: rows of square images with captions, enlarged where small.

    Args:
        rows: images of one size; captions are wrapped, and cut after `CAPTION_LINES` lines.
        texts_of: data whose texts the captions are, see `files.atomic_write`.
    """
    font = ImageFont.load_default(LETTERS)
    times = -(-EDGE // max(1, min(EDGE, len(rows[0][0].image_SS))))
    edge = times * len(rows[0][0].image_SS)
    wrapped = [[_wrapped(tile.caption, font, edge) for tile in row] for row in rows]
    line = LETTERS + 4
    heights = [edge + SPACE // 2 + line * max(len(lines) for lines in row) + SPACE for row in wrapped]
    width = SPACE + max(len(row) for row in rows) * (edge + SPACE)
    sheet = Image.new("RGB", (width, SPACE + sum(heights)), PAPER)
    pen, top = ImageDraw.Draw(sheet), SPACE
    for row, captions, height in zip(rows, wrapped, heights, strict=True):
        for column, (tile, lines) in enumerate(zip(row, captions, strict=True)):
            left = SPACE + column * (edge + SPACE)
            grey = Image.fromarray((np.clip(tile.image_SS, 0, 1) * 255).round().astype(np.uint8))
            sheet.paste(grey.resize((edge, edge), Image.Resampling.NEAREST), (left, top))
            for number, text in enumerate(lines):
                pen.text((left, top + edge + SPACE // 2 + number * line), text, INK, font)
        top += height
    save_png(sheet, path, texts_of=texts_of)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], f"{lines[CAPTION_LINES - 1]} ..."]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."


def save_png(
    image: Image.Image, path: Path, captions: Sequence[str] = (), texts_of: Path | None = None
) -> None:
    """Write an image whole or not at all; the folder is made.

    Args:
        captions: see `save_rows`.
        texts_of: see `files.atomic_write`.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    make_folder(path.parent)
    notes = PngInfo()
    if captions:
        notes.add_text(CAPTIONS, json.dumps(list(captions)))
    with atomic_write(path, texts_of=texts_of) as file:
        image.save(file, "PNG", pnginfo=notes)
