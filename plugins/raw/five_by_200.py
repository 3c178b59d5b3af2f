"""The 5x200 sets: 200 images of each of five classes, each showing that class and no other finding.

The rule is GLoRIA's: the class is positive, and the other 12 of the 13 pathology labels are blank or
negative, so that an uncertain one disqualifies; `No Finding` is not asked. Ours takes one image per patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DataError

from .draws import shuffled

__all__ = ["CLASS_LISTS", "PATHOLOGIES", "draw_5x200", "strict_class"]

PATHOLOGIES = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
"""The labels of CheXpert without `No Finding`."""

CLASS_LISTS = {
    "paper": ("Atelectasis", "Cardiomegaly", "Pneumonia", "Edema", "Pleural Effusion"),
    "gloria": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
}
"""MedUnifier's own five classes, and those of GLoRIA and most later work."""


def strict_class(labels_N13: NDArray[np.int8], classes: Sequence[str]) -> NDArray[np.int8]:
    """Place in `classes` of the one finding of each row, -1 for rows that do not qualify.

    Args:
        labels_N13: columns as `PATHOLOGIES`; 1 positive, 0 negative, -1 uncertain, -2 blank.
    """
    found = np.full(len(labels_N13), -1, dtype=np.int8)
    clean = ((labels_N13 == 1) | (labels_N13 == 0) | (labels_N13 == -2)).all(axis=1)
    single = clean & ((labels_N13 == 1).sum(axis=1) == 1)
    for place, name in enumerate(classes):
        found[single & (labels_N13[:, PATHOLOGIES.index(name)] == 1)] = place
    return found


def draw_5x200(
    candidates: Sequence[Mapping[int, Sequence[int]]],
    classes: Sequence[str],
    per_class: int,
    seed: int,
    accept: Callable[[int], bool],
) -> list[list[int]]:
    """Rows of `per_class` images of each class, one image per patient over all classes.

    Args:
        candidates: for each class, patient -> rows that qualify by their labels, both in a fixed order.
        accept: asked in the order of the draw; False passes a row over (no report, no file).

    Raises:
        DataError: too few candidates for a class.
    """
    taken: set[int] = set()
    drawn = []
    scarce_first = sorted(range(len(classes)), key=lambda place: len(candidates[place]))
    for place in scarce_first:
        rows: list[int] = []
        for patient in shuffled(list(candidates[place]), seed, place):
            if len(rows) == per_class:
                break
            if patient in taken:
                continue
            own = shuffled(candidates[place][patient], seed, place, patient)
            row = next((row for row in own if accept(row)), None)
            if row is not None:
                rows.append(row)
                taken.add(patient)
        if len(rows) < per_class:
            raise DataError(
                f"5x200: {len(rows)} of {per_class} {classes[place]} images found, {len(candidates[place])} "
                "patients qualify by label; is the download complete? -o per_class=N asks for fewer, 0 none"
            )
        drawn.append((place, rows))
    return [rows for _, rows in sorted(drawn)]
