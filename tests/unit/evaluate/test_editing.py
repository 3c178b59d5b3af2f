"""Which cells of the codes a box in a film's pixels touches."""

from __future__ import annotations

import numpy as np
import pytest

from medunifier_cli.data.images.image import GreyImage
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.editing import Cells, cells_of

FILM = GreyImage(np.zeros((64, 64), np.uint8), 200, 100, 8, False)
"""200 pixels high and 100 wide, over 4 x 4 cells of 50 x 25."""


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        (None, (0, 0, 4, 4)),
        ((0, 0, 100, 200), (0, 0, 4, 4)),
        ((25, 50, 50, 100), (1, 1, 2, 2)),
        ((24.9, 49, 50.1, 101), (0, 0, 3, 3)),
        ((99, 199, 100, 200), (3, 3, 4, 4)),
    ],
)
def test_a_box_takes_every_cell_that_it_touches(
    box: tuple[float, float, float, float] | None, cells: tuple[int, int, int, int]
) -> None:
    assert cells_of(box, FILM, 4, "film.png") == Cells(*cells)


@pytest.mark.parametrize("edge", [5, 6, 7, 8])
def test_borders_of_cells_and_of_the_film_are_exact_at_any_size(edge: int) -> None:
    """187 * (6 / 187) is more than 6 in floating point."""
    for width in range(edge, 2000):
        film = GreyImage(np.zeros((64, 64), np.uint8), 3 * width, width, 8, False)
        whole = cells_of((0, 0, width, 3 * width), film, edge, "film.png")
        assert whole == Cells(0, 0, edge, edge)
        if width % edge == 0:
            step = width // edge
            one = cells_of((step, 3 * step, 2 * step, 6 * step), film, edge, "film.png")
            assert one == Cells(1, 1, 2, 2)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (0, 0, 101, 9), (0, 0, 9, 201)])
def test_a_box_that_is_empty_or_reaches_out_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(DataError, match=r"--box .*: must be x0,y0,x1,y1 .* 100 x 200 pixels of film.png"):
        cells_of(box, FILM, 4, "film.png")


def test_cells_hide_and_outline_the_same_places() -> None:
    cells = Cells(1, 2, 3, 4)
    hidden = cells.hidden(4).view(4, 4)
    assert hidden.nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    lined = cells.outlined(np.zeros((16, 16)), 4)
    inside = np.kron(hidden.numpy(), np.ones((4, 4), bool))
    assert not lined[~inside].any()
    assert lined[inside].sum() == 4 * 7  # the edge of a square of 8
