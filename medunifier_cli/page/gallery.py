"""Write a gallery: a folder of images with a caption each, which can be moved or sent as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.files import make_folder
from medunifier_cli.page.document import facts, save_page
from medunifier_cli.page.pictures import save_png

IMAGES = "images"
"""Folder of the thumbnails, next to `index.html`."""
LARGEST = 320
"""Pixels: longest edge of a thumbnail."""


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


def write_gallery(
    folder: Path,
    title: str,
    about: Mapping[str, str],
    cards: Sequence[GalleryImage],
    query: GalleryImage | None = None,
    texts_of: Path | None = None,
) -> Path:
    """Write `index.html` and thumbnails; replaces an older gallery in the same folder.

    Args:
        about: facts at the top of the page, name and value.
        cards: in order of rank.
        query: an image shown above the others.
        texts_of: data whose texts the images have, see `files.atomic_write`.

    Returns:
        The page.
    """
    images = folder / IMAGES
    make_folder(images)
    for old in images.glob("*.png"):
        old.unlink()
    parts = [facts(dict(about))]
    if query is not None:
        source = _thumbnail(query, images / "query.png")
        parts.append(f'<div class="card query">{_figure(query, source, "the image searched with")}</div>')
    parts.append('<ol class="gallery">')
    for rank, card in enumerate(cards, 1):
        source = _thumbnail(card, images / f"{rank:04d}.png")
        parts.append(f'<li class="card">{_figure(card, source, f"rank {rank}, {card.name}")}</li>')
    parts.append("</ol>")
    return save_page(folder, title, "\n".join(parts), texts_of)


def _thumbnail(card: GalleryImage, path: Path) -> str:
    image = Image.fromarray(card.image_HW)
    image.thumbnail((LARGEST, LARGEST))
    save_png(image, path)
    return f"{path.parent.name}/{path.name}"


def _figure(card: GalleryImage, source: str, alt: str) -> str:
    height, width = card.image_HW.shape
    numbers = "<br>".join(
        f'{escape(name)} <span class="number">{value:.3f}</span>' for name, value in card.numbers.items()
    )
    text = f"<p>{escape(card.text)}</p>" if card.text else ""
    break_ = "<br>" if numbers else ""
    return (
        f'<figure><img src="{escape(source)}" alt="{escape(alt)}" width="{width}" height="{height}">'
        f'<figcaption>{numbers}{break_}<span class="key">{escape(card.name)}</span>{text}'
        "</figcaption></figure>"
    )
