"""Join the CSVs of MIMIC-CXR-JPG into one compact table: about 80 bytes for each of the 377,110 images."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DataError, quoted

from ..raw.tables import Table, find_table, identifier, label_value

__all__ = [
    "ID_BYTES", "LABELS", "SPLITS", "ImageTable", "StudyLabels", "has_split_table",
    "join_images", "read_images", "read_labels",
]  # fmt: skip

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"),
    *("Pneumothorax", "Support Devices"),
)
"""Label columns of the chexpert and negbio tables."""

SPLITS = {"train": "train", "validate": "valid", "test": "test"}
"""Official split name -> name in the shards."""

BLANK = -2
"""int8 code of a label that the report does not mention."""

VIEWS = 1000
"""More spellings of a view position than this are no view positions; the release has about ten."""
ID_BYTES = 44
"""Length of a dicom id: five groups of eight hexadecimal digits."""


@dataclass(frozen=True)
class ImageTable:
    """All images, sorted by subject, study and dicom id; one element per image in each array."""

    dicom: NDArray[np.bytes_]
    subject: NDArray[np.int64]
    study: NDArray[np.int64]
    split: NDArray[np.int8]
    """Index in `SPLITS`."""
    view: NDArray[np.int16]
    """Index in `views`; -1 if blank, or if the metadata table does not list the image."""
    views: Sequence[str]
    """All spellings of ViewPosition in the metadata table."""
    has_views: bool
    """False without a metadata table: then only the DICOM header knows the view."""

    def __len__(self) -> int:
        return len(self.dicom)

    def key(self, row: int) -> str:
        """The dicom id."""
        return str(self.dicom[row], "ascii")

    def rows_of(self, keys: Sequence[str], origin: str) -> NDArray[np.int64]:
        """Rows of the given dicom ids.

        Raises:
            DataError: an id is not in the table; `origin` names the list in the message.
        """
        # one byte more: a longer id must not become, cut off, one that is there
        ids = np.array([key.encode() for key in keys], dtype=f"S{ID_BYTES + 1}")
        order = np.argsort(self.dicom, kind="stable")
        indices, present = _look_up(self.dicom[order], ids)
        if not present.all():
            first = quoted(keys[int(np.argmin(present))])
            raise DataError(
                f"{origin}: {(~present).sum()} of {len(keys)} ids are not in the split table, first {first}"
            )
        rows: NDArray[np.int64] = order[indices]
        return rows


@dataclass(frozen=True)
class StudyLabels:
    """The labels of each study, sorted by study id."""

    study: NDArray[np.int64]
    values: NDArray[np.int8]
    """int8 [studies, 14]: 1 positive, 0 negative, -1 uncertain, `BLANK`."""

    def of(self, study: int) -> Mapping[str, float | None]:
        """All 14 labels of a study; empty for the eight studies that the table does not list."""
        index = int(np.searchsorted(self.study, study))
        if index == len(self.study) or self.study[index] != study:
            return {}
        row = self.values[index]
        return {name: None if row[i] == BLANK else float(row[i]) for i, name in enumerate(LABELS)}

    def for_studies(self, studies: NDArray[np.int64]) -> NDArray[np.int8]:
        """int8 [len(studies), 14]; all blank for a study that is not in the table."""
        indices, present = _look_up(self.study, studies)
        values = np.full((len(studies), len(LABELS)), BLANK, dtype=np.int8)
        values[present] = self.values[indices[present]]
        return values


def has_split_table(folders: Sequence[Path]) -> bool:
    """Whether the release's own split is there."""
    return _released(folders, "split") is not None


def read_images(folders: Sequence[Path]) -> ImageTable:
    """The split table joined with the metadata table, if there is one.

    Raises:
        DataError: no split table, an unknown split, an image listed twice.
    """
    table = _released(folders, "split")
    if table is None:
        raise DataError(
            f"{folders[0]}: no mimic-cxr-2.0.0-split.csv(.gz). It, -metadata and -chexpert come with "
            "MIMIC-CXR-JPG; a DICOM download needs these three small files too"
        )
    names = list(SPLITS)
    # Arrays instead of lists of rows: 377,110 rows of Python strings would take over a hundred megabytes.
    dicoms, subjects, studies, splits = bytearray(), array("q"), array("q"), array("q")
    for line, row in table.rows(["dicom_id", "subject_id", "study_id", "split"]):
        if row[3] not in SPLITS:
            raise DataError(f"{table.shown}:{line}: split {quoted(row[3])} is none of {', '.join(SPLITS)}")
        dicoms += _fixed(row[0], table, line)
        subjects.append(identifier(row[1], table, line, "subject_id"))
        studies.append(identifier(row[2], table, line, "study_id"))
        splits.append(names.index(row[3]))
    return join_images(dicoms, subjects, studies, splits, folders, table, "dicom_id")


def join_images(
    dicoms: bytearray, subjects: array[int], studies: array[int], splits: array[int],
    folders: Sequence[Path], table: Table, id_column: str,
) -> ImageTable:  # fmt: skip
    """Sort images by subject, study and dicom id, and add the view positions of the metadata table, if any.

    Args:
        dicoms: ids of `ID_BYTES` bytes each, filled up with zero bytes.
        splits: indices in `SPLITS`.
        folders: where the metadata table is searched for.
        table, id_column: where the ids come from, for messages.

    Raises:
        DataError: an image listed twice.
    """
    dicom = np.frombuffer(dicoms, dtype=f"S{ID_BYTES}")
    subject, study = np.array(subjects, dtype=np.int64), np.array(studies, dtype=np.int64)
    order = np.lexsort((dicom, study, subject))
    _refuse_twice(np.sort(dicom), table, id_column)
    view, views, has_views = _views(dicom, _released(folders, "metadata"))
    split = np.array(splits, dtype=np.int8)
    return ImageTable(dicom[order], subject[order], study[order], split[order], view[order], views, has_views)


def _views(dicom: NDArray[np.bytes_], table: Table | None) -> tuple[NDArray[np.int16], list[str], bool]:
    """(index of each image's ViewPosition in the list of spellings, the list, whether there is a table)."""
    view, spellings = np.full(len(dicom), -1, dtype=np.int16), dict[str, int]()
    if table is None:
        return view, [], False
    ids, positions = bytearray(), array("q")
    for line, (dicom_id, position) in table.rows(["dicom_id", "ViewPosition"]):
        ids += _fixed(dicom_id, table, line)
        if len(spellings) > VIEWS:
            raise DataError(f"{table.shown}:{line}: more than {VIEWS} spellings of ViewPosition")
        positions.append(spellings.setdefault(position, len(spellings)) if position else -1)
    order = np.argsort(dicom, kind="stable")
    indices, present = _look_up(dicom[order], np.frombuffer(ids, dtype=f"S{ID_BYTES}"))
    view[order[indices[present]]] = np.array(positions, dtype=np.int16)[present]
    return view, list(spellings), True


def read_labels(folders: Sequence[Path], labeller: str) -> StudyLabels | None:
    """The `chexpert` or `negbio` table, one row per study; None if it is missing.

    Raises:
        DataError: a study listed twice, or a value that is not a label.
    """
    table = _released(folders, labeller)
    if table is None:
        return None
    studies, values = array("q"), bytearray()
    for line, row in table.rows(["study_id", *LABELS]):
        studies.append(identifier(row[0], table, line, "study_id"))
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
    """A table of the JPG release; 2.1.0 kept the names of 2.0.0 for the tables that both have."""
    return find_table(folders, f"mimic-cxr-2.0.0-{kind}.csv", f"mimic-cxr-2.1.0-{kind}.csv")


def _fixed(dicom: str, table: Table, line: int) -> bytes:
    if not dicom or len(dicom) > ID_BYTES or not dicom.isascii():
        raise DataError(f"{table.shown}:{line}: {quoted(dicom)} is not a dicom_id")
    return dicom.encode().ljust(ID_BYTES, b"\0")


def _look_up(
    ordered: NDArray[np.generic], values: NDArray[np.generic]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(index of each value in a sorted array, 0 if absent; whether it is present)."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    indices = np.searchsorted(ordered, values)
    indices[indices == len(ordered)] = 0
    return indices, ordered[indices] == values
