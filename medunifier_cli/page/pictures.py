"""Write grids of grey images as one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medunifier_cli.files import atomic_write, make_folder

GAP = 2
"""White pixels between images."""


def save_pairs(above_BCHW: Tensor, below_BCHW: Tensor, path: Path) -> None:
    """Two rows: column b holds image b above and its counterpart below. Values in [0, 1], clamped."""
    rows = [
        images.detach().float().clamp(0, 1).mean(dim=1).cpu().numpy() for images in (above_BCHW, below_BCHW)
    ]
    save_rows([list(row) for row in rows], path)


def save_rows(rows: list[list[NDArray[Any]]], path: Path) -> None:
    """Rows of equally large grey images in [0, 1] as one PNG."""
    height, width = rows[0][0].shape
    columns = max(len(row) for row in rows)
    sheet = np.ones((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            sheet[top : top + height, left : left + width] = image
    save_png(Image.fromarray((sheet * 255).round().astype(np.uint8)), path)


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image whole or not at all; the folder is made.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    make_folder(path.parent)
    with atomic_write(path) as file:
        image.save(file, "PNG")
