"""Write a page of images, each with the training image it resembles most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.page.document import save_page
from medunifier_cli.page.pictures import LARGEST, Shown, shown


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


@dataclass(frozen=True)
class _Card:
    image: Shown
    name: str
    training_name: str
    correlation: float
    suspicious: bool


def write_pairs(folder: Path, about: Mapping[str, str], pairs: Sequence[Pair]) -> Path:
    """Write `index.html`, the nearest pair first; replaces an older page."""
    cards = []
    for rank, pair in enumerate(pairs, 1):
        gap = np.full((pair.image_SS.shape[0], 2), 255, np.uint8)
        joined = Image.fromarray(np.concatenate([pair.image_SS, gap, pair.training_SS], axis=1))
        alt = f"pair {rank}: an image and its nearest training image"
        image = shown(joined, alt, 2 * LARGEST)
        cards.append(_Card(image, pair.name, pair.training_name, pair.correlation, pair.suspicious))
    values = {"title": "Closest training images", "about": about, "pairs": cards}
    return save_page(folder, "pairs.html", values)
