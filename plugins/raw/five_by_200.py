"""The 5x200 sets: 200 images of each of five classes, each showing its class and no other finding.

The rule is GLoRIA's: the class is positive, and the other 12 of CheXpert's 13 pathology labels are blank or
negative, so that an uncertain label disqualifies an image; `No Finding` is ignored. Unlike in GLoRIA's sets,
no patient has more than one image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DataError

from .sampling import shuffled

__all__ = ["CLASS_LISTS", "PATHOLOGIES", "exclusive_class", "sample_5x200"]

PATHOLOGIES = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
"""CheXpert's 14 labels without `No Finding`."""

CLASS_LISTS = {
    "paper": ("Atelectasis", "Cardiomegaly", "Pneumonia", "Edema", "Pleural Effusion"),
    "gloria": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
}
"""The five classes of the MedUnifier paper, and those of GLoRIA and most later work."""


def exclusive_class(labels_N13: NDArray[np.int8], classes: Sequence[str]) -> NDArray[np.int8]:
    """Index in `classes` of the only finding of each row, -1 for rows that do not qualify; int8 [N].

    Args:
        labels_N13: columns as in `PATHOLOGIES`; 1 positive, 0 negative, -1 uncertain, -2 blank.
    """
    class_N = np.full(len(labels_N13), -1, dtype=np.int8)
    certain = ((labels_N13 == 1) | (labels_N13 == 0) | (labels_N13 == -2)).all(axis=1)
    single = certain & ((labels_N13 == 1).sum(axis=1) == 1)
    for index, name in enumerate(classes):
        class_N[single & (labels_N13[:, PATHOLOGIES.index(name)] == 1)] = index
    return class_N


def sample_5x200(
    candidates: Sequence[Mapping[int, Sequence[int]]],
    classes: Sequence[str],
    per_class: int,
    seed: int,
    accept: Callable[[int], bool],
) -> list[list[int]]:
    """Rows of `per_class` images of each class, at most one image per patient over all classes.

    Args:
        candidates: for each class, patient -> rows that qualify by their labels, both in a fixed order.
        accept: called in the order of sampling; False skips a row (no report, no file).

    Raises:
        DataError: too few candidates for a class.
    """
    taken: set[int] = set()
    rows_by_class: dict[int, list[int]] = {}
    # The rarest class chooses first: a patient who qualifies for two classes is worth more to the rarer one.
    rarest_first = sorted(range(len(classes)), key=lambda index: len(candidates[index]))
    for index in rarest_first:
        rows: list[int] = []
        for patient in shuffled(list(candidates[index]), seed, index):
            if len(rows) == per_class:
                break
            if patient in taken:
                continue
            patient_rows = shuffled(candidates[index][patient], seed, index, patient)
            row = next((row for row in patient_rows if accept(row)), None)
            if row is not None:
                rows.append(row)
                taken.add(patient)
        if len(rows) < per_class:
            raise DataError(
                f"5x200: {len(rows)} of {per_class} {classes[index]} images found, {len(candidates[index])} "
                "patients qualify by label; is the download complete? -o per_class=N asks for fewer, 0 none"
            )
        rows_by_class[index] = rows
    return [rows_by_class[index] for index in range(len(classes))]
