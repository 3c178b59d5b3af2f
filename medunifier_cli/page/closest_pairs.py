"""Write a page of images, each with the training image it resembles most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.files import make_folder
from medunifier_cli.page.document import facts, save_page
from medunifier_cli.page.pictures import save_png

SHOWN_EDGE = 256
"""Pixels that small images are enlarged to, at least."""


@dataclass(frozen=True)
class Pair:
    """One image and its nearest training image."""

    image_SS: NDArray[np.uint8]
    name: str
    training_SS: NDArray[np.uint8]
    training_name: str
    correlation: float
    suspicious: bool
    """Nearer to training than 99 % of unseen images are."""


def write_pairs(folder: Path, about: Mapping[str, str], pairs: Sequence[Pair]) -> Path:
    """Write `index.html` and the pictures, the nearest pair first; replaces an older page."""
    images = folder / "images"
    make_folder(images)
    for old in images.glob("*.png"):
        old.unlink()
    cards = []
    for rank, pair in enumerate(pairs, 1):
        name = f"{rank:03d}.png"
        gap = np.full((pair.image_SS.shape[0], 2), 255, np.uint8)
        joined = Image.fromarray(np.concatenate([pair.image_SS, gap, pair.training_SS], axis=1))
        times = max(1, SHOWN_EDGE // pair.image_SS.shape[0])
        larger = joined.resize((joined.width * times, joined.height * times), Image.Resampling.NEAREST)
        save_png(larger, images / name)
        mark = " - nearer than unseen images are" if pair.suspicious else ""
        cards.append(
            f'<li class="card"><figure><img src="images/{name}" alt="pair {rank}: an image and its nearest '
            f'training image"><figcaption><span class="number">{pair.correlation:.4f}</span>{mark}'
            f'<p>{escape(pair.name)}</p><p class="key">training: {escape(pair.training_name)}</p>'
            "</figcaption></figure></li>"
        )
    body = (
        facts(dict(about))
        + "<p>Left: the image. Right: the training image nearest to it. The number is the pixel correlation, "
        "through the codes where the model has any; 1 is a copy.</p>"
        + '<ol class="gallery">'
        + "\n".join(cards)
        + "</ol>"
    )
    return save_page(folder, "Closest training images", body)
