"""Write a gallery: a page of images with a caption each, in one file that can be moved or sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.page.document import save_page
from medunifier_cli.page.pictures import Shown, shown


@dataclass(frozen=True)
class GalleryImage:
    """One image of a gallery."""

    image_HW: NDArray[np.uint8]
    name: str
    """Key or file, shown under it."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Shown above the name, for example the similarity."""
    text: str = ""
    """Report, shown unchanged."""


@dataclass(frozen=True)
class _Card:
    image: Shown
    name: str
    numbers: Mapping[str, float]
    text: str


def write_gallery(
    folder: Path,
    title: str,
    about: Mapping[str, str],
    cards: Sequence[GalleryImage],
    query: GalleryImage | None = None,
    texts_of: Path | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """Write `index.html`; replaces an older gallery in the same folder.

    Args:
        about: facts at the top of the page, name and value.
        cards: in order of rank.
        query: an image shown above the others.
        texts_of: data whose texts the images have, see `files.atomic_write`.
        warnings: what a reader must know first.

    Returns:
        The page.
    """
    values = {
        "title": title, "about": about, "query": _card(query, "the image searched with") if query else None,
        "cards": [_card(card, f"rank {rank}, {card.name}") for rank, card in enumerate(cards, 1)],
        "warnings": warnings,
    }  # fmt: skip
    return save_page(folder, "gallery.html", values, texts_of)


def _card(one: GalleryImage, alt: str) -> _Card:
    return _Card(shown(one.image_HW, alt), one.name, one.numbers, one.text)
