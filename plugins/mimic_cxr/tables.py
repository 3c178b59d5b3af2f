"""The CSVs of MIMIC-CXR-JPG joined into one compact table of images: about 80 bytes for each of 377,110."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DataError

from ..raw.tables import Table, find_table, integer, label_value

__all__ = ["LABELS", "Images", "StudyLabels", "read_images", "read_labels"]

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"),
    *("Pneumothorax", "Support Devices"),
)
"""Columns of the chexpert and negbio tables."""

SPLITS = {"train": "train", "validate": "valid", "test": "test"}
"""The official names and ours."""

BLANK = -2
"""A label that is not mentioned, as int8."""

ID_BYTES = 44
"""Length of a dicom id: five groups of eight hexadecimal digits."""


@dataclass(frozen=True)
class Images:
    """All images sorted by subject, study and dicom id; arrays of one length."""

    dicom: NDArray[np.bytes_]
    subject: NDArray[np.int64]
    study: NDArray[np.int64]
    split: NDArray[np.int8]
    """Place in `SPLITS`."""
    view: NDArray[np.int16]
    """Place in `views`, -1 for a blank or an image the metadata do not list."""
    views: Sequence[str]
    has_views: bool
    """False without a metadata table: then the view stands in the DICOM header only."""

    def __len__(self) -> int:
        return len(self.dicom)

    def key(self, row: int) -> str:
        """The dicom id."""
        return str(self.dicom[row], "ascii")

    def rows_of(self, keys: Sequence[str], origin: str) -> NDArray[np.int64]:
        """Rows of the given dicom ids.

        Raises:
            DataError: some are not in the table.
        """
        wanted = np.array([key.encode() for key in keys], dtype=f"S{ID_BYTES}")
        order = np.argsort(self.dicom, kind="stable")
        places, found = _look_up(self.dicom[order], wanted)
        if not found.all():
            first = keys[int(np.argmin(found))]
            raise DataError(
                f"{origin}: {(~found).sum()} of {len(keys)} ids are not in the split table, first {first!r}"
            )
        rows: NDArray[np.int64] = order[places]
        return rows


@dataclass(frozen=True)
class StudyLabels:
    """Labels by study, sorted by study id: int8 [studies, 14] with 1, 0, -1 and `BLANK`."""

    study: NDArray[np.int64]
    values: NDArray[np.int8]

    def of(self, study: int) -> Mapping[str, float | None]:
        """All 14 labels of a study; eight studies are not in the table and have none."""
        place = int(np.searchsorted(self.study, study))
        if place == len(self.study) or self.study[place] != study:
            return {}
        row = self.values[place]
        return {name: None if row[i] == BLANK else float(row[i]) for i, name in enumerate(LABELS)}

    def for_studies(self, studies: NDArray[np.int64]) -> NDArray[np.int8]:
        """int8 [len(studies), 14]; all blank for a study that is not in the table."""
        places, found = _look_up(self.study, studies)
        values = np.full((len(studies), len(LABELS)), BLANK, dtype=np.int8)
        values[found] = self.values[places[found]]
        return values


def read_images(folders: Sequence[Path]) -> Images:
    """The split table joined with the metadata table, where there is one.

    Raises:
        DataError: no split table, an unknown split, an image listed twice.
    """
    table = _released(folders, "split")
    if table is None:
        raise DataError(
            f"{folders[0]}: no mimic-cxr-2.0.0-split.csv(.gz). It, -metadata and -chexpert come with "
            "MIMIC-CXR-JPG; a DICOM download needs these three small files as well"
        )
    names = list(SPLITS)
    dicoms, subjects, studies, splits = bytearray(), array("q"), array("q"), array("q")
    for line, row in table.rows(["dicom_id", "subject_id", "study_id", "split"]):
        if row[3] not in SPLITS:
            raise DataError(f"{table.shown}:{line}: split {row[3]!r} is none of {', '.join(SPLITS)}")
        dicoms += _fixed(row[0], table, line)
        subjects.append(integer(row[1], table, line, "subject_id"))
        studies.append(integer(row[2], table, line, "study_id"))
        splits.append(names.index(row[3]))
    dicom = np.frombuffer(dicoms, dtype=f"S{ID_BYTES}")
    subject, study = np.array(subjects, dtype=np.int64), np.array(studies, dtype=np.int64)
    order = np.lexsort((dicom, study, subject))
    _refuse_twice(np.sort(dicom), table, "dicom_id")
    view, views, has_views = _views(dicom, _released(folders, "metadata"))
    split = np.array(splits, dtype=np.int8)
    return Images(dicom[order], subject[order], study[order], split[order], view[order], views, has_views)


def _views(dicom: NDArray[np.bytes_], table: Table | None) -> tuple[NDArray[np.int16], list[str], bool]:
    """Place of each image's ViewPosition in the list of spellings, -1 for none."""
    view, spellings = np.full(len(dicom), -1, dtype=np.int16), dict[str, int]()
    if table is None:
        return view, [], False
    ids, positions = bytearray(), array("q")
    for line, (dicom_id, position) in table.rows(["dicom_id", "ViewPosition"]):
        ids += _fixed(dicom_id, table, line)
        positions.append(spellings.setdefault(position, len(spellings)) if position else -1)
    order = np.argsort(dicom, kind="stable")
    places, found = _look_up(dicom[order], np.frombuffer(ids, dtype=f"S{ID_BYTES}"))
    view[order[places[found]]] = np.array(positions, dtype=np.int16)[found]
    return view, list(spellings), True


def read_labels(folders: Sequence[Path], labeller: str) -> StudyLabels | None:
    """The `chexpert` or `negbio` table, one row per study; None where it is not there.

    Raises:
        DataError: a study listed twice, or a label that is none.
    """
    table = _released(folders, labeller)
    if table is None:
        return None
    studies, values = array("q"), bytearray()
    for line, row in table.rows(["study_id", *LABELS]):
        studies.append(integer(row[0], table, line, "study_id"))
        for name, text in zip(LABELS, row[1:], strict=True):
            value = label_value(text, table, line, name)
            values += (BLANK if value is None else int(value)).to_bytes(1, "big", signed=True)
    study = np.array(studies, dtype=np.int64)
    order = np.argsort(study, kind="stable")
    _refuse_twice(study[order], table, "study_id")
    return StudyLabels(study[order], np.frombuffer(values, dtype=np.int8).reshape(-1, len(LABELS))[order])


def _refuse_twice(ordered: NDArray[np.generic], table: Table, column: str) -> None:
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        value = ordered[1:][twice][0]
        shown = value.decode() if isinstance(value, bytes) else value
        raise DataError(f"{table.shown}: {column} {shown} is listed twice")


def _released(folders: Iterable[Path], kind: str) -> Table | None:
    """The JPG release's table of that kind; release 2.1.0 kept the names of 2.0.0."""
    return find_table(folders, f"mimic-cxr-2.0.0-{kind}.csv", f"mimic-cxr-2.1.0-{kind}.csv")


def _fixed(dicom: str, table: Table, line: int) -> bytes:
    if not dicom or len(dicom) > ID_BYTES or not dicom.isascii():
        raise DataError(f"{table.shown}:{line}: dicom_id {dicom!r} is not one")
    return dicom.encode().ljust(ID_BYTES, b"\0")


def _look_up(
    ordered: NDArray[np.generic], wanted: NDArray[np.generic]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Place of each wanted value in a sorted array (0 where absent), and whether it is there."""
    if not len(ordered):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    places = np.searchsorted(ordered, wanted)
    places[places == len(ordered)] = 0
    return places, ordered[places] == wanted
