"""A gallery: images with what is known of each, as a folder that can be moved or sent as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.page.document import facts, save_page

IMAGES = "images"
"""Folder of the thumbnails, beside `index.html`."""
LARGEST = 320
"""Pixels: longest edge of a thumbnail."""


@dataclass(frozen=True)
class Shown:
    """One image of a gallery."""

    image_HW: NDArray[np.uint8]
    name: str
    """Key or file, shown under it."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What is said of it first, such as its similarity."""
    text: str = ""
    """Report, shown as it is."""


def write_gallery(
    folder: Path, title: str, about: Mapping[str, str], shown: Sequence[Shown], query: Shown | None = None
) -> Path:
    """Write `index.html` and thumbnails; an older gallery in the same folder is replaced.

    Args:
        about: name and value of what the page is about.
        shown: in order of rank.
        query: an image shown above the others.

    Returns:
        The page.
    """
    images = folder / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob("*.png"):
        old.unlink()
    parts = [facts(dict(about))]
    if query is not None:
        source = _thumbnail(query, images / "query.png")
        parts.append(f'<div class="card query">{_figure(query, source, "the image searched with")}</div>')
    parts.append('<ol class="gallery">')
    for rank, one in enumerate(shown, 1):
        source = _thumbnail(one, images / f"{rank:04d}.png")
        parts.append(f'<li class="card">{_figure(one, source, f"rank {rank}, {one.name}")}</li>')
    parts.append("</ol>")
    return save_page(folder, title, "\n".join(parts))


def _thumbnail(one: Shown, path: Path) -> str:
    image = Image.fromarray(one.image_HW)
    image.thumbnail((LARGEST, LARGEST))
    image.save(path)
    return f"{path.parent.name}/{path.name}"


def _figure(one: Shown, source: str, alt: str) -> str:
    height, width = one.image_HW.shape
    numbers = "<br>".join(
        f'{escape(name)} <span class="number">{value:.3f}</span>' for name, value in one.numbers.items()
    )
    text = f"<p>{escape(one.text)}</p>" if one.text else ""
    break_ = "<br>" if numbers else ""
    return (
        f'<figure><img src="{escape(source)}" alt="{escape(alt)}" width="{width}" height="{height}">'
        f'<figcaption>{numbers}{break_}<span class="key">{escape(one.name)}</span>{text}'
        "</figcaption></figure>"
    )
