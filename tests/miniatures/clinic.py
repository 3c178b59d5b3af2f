"""A small data set of one's own: films with a class and no report, as a clinic may have them.

The lower half of film n is bright if it is ill; every film is another picture.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

EDGE = 32
SPLITS = {"train": 24, "valid": 10, "test": 12}
PROMPTS = {"ill": ["Opacity in both lungs.", "Consolidation."], "well": ["Clear lungs.", "No finding."]}
YAML = "".join(f"{name}: {texts}\n" for name, texts in PROMPTS.items())


def class_of(n: int) -> str:
    return "ill" if n % 2 else "well"


def film(n: int) -> Image.Image:
    """Noise that is repeated nowhere; its lower half is brighter where the class is `ill`."""
    picture = np.random.default_rng(n).integers(20, 140, (EDGE, EDGE))
    picture[EDGE // 2 :] += 100 * (class_of(n) == "ill")
    return Image.fromarray(picture.astype(np.uint8))


def write_clinic(folder: Path) -> tuple[Path, Path]:
    """The table `films.csv` with its images, and the prompts of its classes."""
    (folder / "images").mkdir(parents=True)
    with (folder / "films.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "patient", "split", "class"])
        n = 0
        for split, count in SPLITS.items():
            for _ in range(count):
                film(n).save(folder / "images" / f"film_{n:02d}.png")
                rows.writerow([f"images/film_{n:02d}.png", f"p{n}", split, class_of(n)])
                n += 1
    (folder / "prompts.yaml").write_text(YAML, encoding="utf-8")
    return folder / "films.csv", folder / "prompts.yaml"
