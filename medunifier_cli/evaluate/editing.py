"""Edit a radiograph: codes outside a box are kept, those inside are drawn anew for a prompt.

Film -> codes -> those of the box hidden -> drawn by a masked prior -> image.

Letters: S edge of the model's images, T edge of the top map, P = T * T cells of a top code and 2 x 2 bottom
codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.priors import FittedPriors
from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import GreyImage, image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.evaluate.codes import codes_hash, decode, encode
from medunifier_cli.evaluate.synthesis.requests import ImageRequest, requests_hash, token_states
from medunifier_cli.evaluate.synthesis.sample_folder import (
    SHEET,
    SampleFolder,
    in_rows,
    origin_of,
    read_grey,
)
from medunifier_cli.model.sampling import Draws
from medunifier_cli.page.pictures import Captioned, save_sheet
from medunifier_cli.prior.masked.network import to_cells, to_maps
from medunifier_cli.prior.masked.prior import MaskedPrior
from medunifier_cli.terminal.progress import Progress

SHOWN = 12
"""Edited images on the sheet."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the film's file, from its upper left corner; x1 and y1 lie outside."""


@dataclass(frozen=True)
class Cells:
    """A rectangle of cells; `right` and `below` lie outside."""

    left: int
    top: int
    right: int
    below: int

    def hidden(self, edge: int) -> Tensor:
        """bool [P], whether a cell lies inside."""
        inside_TT = torch.zeros(edge, edge, dtype=torch.bool)
        inside_TT[self.top : self.below, self.left : self.right] = True
        return inside_TT.flatten()

    def outlined(self, image_SS: NDArray[np.float64], edge: int) -> NDArray[np.float64]:
        """A copy of an image in [0, 1] with a white line around the cells, inside of them."""
        step = image_SS.shape[0] // edge
        shown = image_SS.copy()
        rows, columns = slice(self.top * step, self.below * step), slice(self.left * step, self.right * step)
        shown[[rows.start, rows.stop - 1], columns] = 1.0
        shown[rows, [columns.start, columns.stop - 1]] = 1.0
        return shown


def cells_of(box: Box | None, film: GreyImage, edge: int, name: str) -> Cells:
    """All cells that a box touches; without a box all there are.

    Args:
        film: says how large the file's image is.
        edge: T.
        name: of the file, for messages.

    Raises:
        DataError: an empty box, or one that reaches out of the image.
    """
    if box is None:
        return Cells(0, 0, edge, edge)
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= film.width and 0 <= y0 < y1 <= film.height):
        asked = ",".join(f"{value:g}" for value in box)
        raise DataError(
            f"--box {asked}: must be x0,y0,x1,y1 with x0 < x1 and y0 < y1, inside of the {film.width} x "
            f"{film.height} pixels of {name}"
        )
    # multiplied first: where a border of the box is one of a cell, the quotient is that whole number
    return Cells(
        int(x0 * edge / film.width), int(y0 * edge / film.height),
        ceil(x1 * edge / film.width), ceil(y1 * edge / film.height),
    )  # fmt: skip


def edit(
    fitted: FittedPriors, film: Path, box: Box | None, request: ImageRequest, out: Path, n: int, draws: Draws
) -> SampleFolder:
    """Fill the folder `out` with n edits of a film; those that are there already stay.

    The contact sheet shows the film and its reconstruction, then edits, with a line around the cells that
    were drawn anew. Bottom codes depend on a text (paper, equation 20): those of the film on the prompt.

    Raises:
        CheckpointError: the priors go code by code, which cannot keep codes that come later, or have no text.
        DataError: the film or the folder cannot be used, the box or the prompt does not fit.
        MuError: a setting out of range.
    """
    draws.check()
    prior, pretrained = _masked(fitted), fitted.pretrained
    image, edge = _read(film, pretrained.recipe.data.image_size), pretrained.model.generator.top
    cells = cells_of(box, image, edge, str(film))
    text = token_states(pretrained, [request])
    pixels_11HW = torch.from_numpy(image.pixels)[None, None]
    cell_1PS = to_cells(*encode(pretrained, pixels_11HW, [request.prompt]))
    hidden_1PS = cell_1PS.masked_fill(cells.hidden(edge)[None, :, None], prior.network.hidden)
    settings = {
        "priors": fitted.identity, "pretrained": pretrained.identity, "prompts": requests_hash([request]),
        "film": hashlib.sha256(image.pixels.tobytes()).hexdigest()[:16], "cells": asdict(cells),
        **asdict(draws), **prior.decoding,
    }  # fmt: skip
    folder = SampleFolder(out, settings, origin=origin_of(fitted.run.folder.name, fitted.identity))
    if len(folder.done) > n:
        raise DataError(f"{out}: holds {len(folder.done):,} images already; set --n to at least that")
    with Progress(n, "image", first=len(folder.done)) as progress:
        for number in range(n):
            if number in folder.done:
                continue
            filled = prior.fill(hidden_1PS, range(number, number + 1), draws, text)
            top_TT, bottom_GG = (maps[0] for maps in to_maps(filled))
            line = {
                "prompt": request.prompt, "class": request.name, "codes": codes_hash(top_TT, bottom_GG),
                **asdict(draws),
            }  # fmt: skip
            folder.add(number, f"{number:06d}.png", decode(pretrained, top_TT, bottom_GG), line)
            progress.advance(len(folder.done))
    folder.finish()
    before = decode(pretrained, *(maps[0] for maps in to_maps(cell_1PS)))
    _write_sheet(folder, [image.pixels / 255.0, before / 255.0], cells, edge)
    return folder


def _masked(fitted: FittedPriors) -> MaskedPrior:
    prior = fitted.prior
    if not isinstance(prior, MaskedPrior):
        raise CheckpointError(
            f"{fitted.run.folder}: these priors go code by code and cannot keep the rest of a film; fit a "
            "masked one with `mu fit-prior prior-masked`"
        )
    if fitted.recipe.prior.condition == "none":
        raise CheckpointError(
            f"{fitted.run.folder}: this prior was fitted without text; fit another with "
            "`mu fit-prior ... -o prior.condition=text`"
        )
    return prior


def _read(film: Path, size: int) -> GreyImage:
    try:
        return image_from(FileImage(film), size)
    except BadImage as error:
        raise DataError(f"{film}: {error}") from error


def _write_sheet(folder: SampleFolder, film: list[NDArray[np.float64]], cells: Cells, edge: int) -> None:
    edits = [
        read_grey(folder.folder / folder.done[number]["image"]) for number in sorted(folder.done)[:SHOWN]
    ]

    def tiles(images: Sequence[NDArray[np.float64]], captions: Sequence[str]) -> list[Captioned]:
        shown = [cells.outlined(image_SS, edge) for image_SS in images]
        return [Captioned(*tile) for tile in zip(shown, captions, strict=True)]

    numbered = [f"edit {number}" for number in range(1, len(edits) + 1)]
    rows = [tiles(film, ("film", "film through its codes")), *in_rows(tiles(edits, numbered))]
    save_sheet(rows, folder.folder / SHEET, folder.texts_of)
