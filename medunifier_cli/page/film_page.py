"""Write a page of films: each with its report, its classes, where the sentences look, and similar cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.page.document import save_page
from medunifier_cli.page.pictures import Shown, shown

FILM, OVERLAY = 640, 320
"""Longest edge in pixels of a film and of an overlay in the page."""
FULL = 4.0
"""An overlay is opaque where a patch has this many times its even share, and clear up to the even share."""
OPAQUE = 0.75
"""Of an overlay at its strongest: the film stays visible below it."""
AMBER = (255, 176, 32)


@dataclass(frozen=True)
class Sentence:
    """One sentence of a report, and where it looks."""

    text: str
    overlay: Shown
    strongest: float
    """Share of the strongest patch, in even shares."""


@dataclass(frozen=True)
class ClassBar:
    """The probability of one class among those that were asked for."""

    name: str
    probability: float


@dataclass(frozen=True)
class Case:
    """A similar case."""

    key: str
    similarity: float
    """Cosine, mean over the queries."""
    image: Shown
    text: str


@dataclass(frozen=True)
class Film:
    """One film with all answers about it; a part that is not there has its reason in `left_out`."""

    name: str
    image: Shown
    report: str
    sections: Mapping[str, str]
    """Section -> text; empty if the report has no sections."""
    sentences: Sequence[Sentence]
    classes: Sequence[ClassBar]
    cases: Sequence[Case]
    left_out: Mapping[str, str]
    """`classes`, `sentences` or `cases` -> why they are not shown."""
    notes: Sequence[str] = ()
    """What a reader must know about this film, such as that it is unlike the training data."""


@dataclass(frozen=True)
class Colophon:
    """Which model has written a page, and what goes for all films of it."""

    about: Mapping[str, str]
    classes: str
    """How the classes were judged."""
    cases: str
    """Where the similar cases are from."""
    skipped: Mapping[str, str]
    """File -> why it could not be read."""


def overlaid(image_SS: NDArray[np.uint8], share_GG: NDArray[np.float32], alt: str) -> Shown:
    """A film with the share of each patch in amber over it; see `FULL`.

    Args:
        image_SS: grey levels.
        share_GG: of the patches, which sum to 1.
    """
    grey = Image.fromarray(image_SS)
    grey.thumbnail((OVERLAY, OVERLAY))
    strength_GG = np.clip((share_GG * share_GG.size - 1) / (FULL - 1), 0, 1) * OPAQUE
    mask = Image.fromarray((strength_GG * 255).round().astype(np.uint8)).resize(
        grey.size, Image.Resampling.BILINEAR
    )
    film = grey.convert("RGB")
    film.paste(Image.new("RGB", film.size, AMBER), mask=mask)
    return shown(film, alt, OVERLAY)


def write_film_page(
    out: Path, films: Sequence[Film], colophon: Colophon, texts_of: Sequence[Path] = ()
) -> Path:  # fmt: skip
    """Write the page, one file with all pictures in it; an older one is replaced.

    Args:
        out: the file, if its name ends in `.html`, or the folder of its `index.html`.
        films: in order.
        texts_of: the films, and data whose texts the similar cases have, see `files.atomic_write`.

    Returns:
        The page.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    title = films[0].name if len(films) == 1 else f"{len(films)} films"
    values = {"title": title, "films": films, "colophon": colophon, "full": f"{FULL:g}"}
    return save_page(out, "film.html", values, texts_of)
