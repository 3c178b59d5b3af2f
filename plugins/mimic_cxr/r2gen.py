"""Read R2Gen's `annotation.json` of MIMIC-CXR: findings, split and ids of images in `images/p10/...`."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from medunifier_cli.data.contract import DataError, read_json

from ..raw.tables import Table
from .reports import Reports
from .tables import ID_BYTES, SPLITS, ImageTable, join_images

__all__ = ["IMAGE_FOLDERS", "Annotation", "find_annotation", "read_annotation"]

NAME = "annotation.json"
PARTS = {"train": "train", "val": "validate", "test": "test"}
"""Name of each list of the file -> official split name."""
IMAGE_FOLDERS = ("images", "files")
"""Where the patient folders are: R2Gen's name, and that of the releases."""


class _Entry(TypedDict):
    id: str
    subject_id: int | str
    study_id: int | str
    report: str


@dataclass(frozen=True)
class Annotation(Reports):
    """All images that the file lists, and their reports."""

    origin: Path
    images: ImageTable
    findings: Mapping[int, str]
    """Study -> findings section, as R2Gen cut it out."""

    def sections(self, subject: int, study: int) -> Mapping[str, str] | None:
        if study not in self.findings:
            return None
        return {"findings": self.findings[study]} if self.findings[study] else {}


def find_annotation(search: Sequence[Path]) -> Path | None:
    """The nearest `annotation.json`."""
    return next((folder / NAME for folder in search if (folder / NAME).is_file()), None)


def read_annotation(path: Path, roots: Sequence[Path]) -> Annotation:
    """The annotation joined with the metadata table in `roots`, if there is one.

    Raises:
        DataError: it is not R2Gen's file of MIMIC-CXR, or lists an image twice.
    """
    dicoms, subjects, studies, splits = bytearray(), array("q"), array("q"), array("q")
    findings: dict[int, str] = {}
    names = list(SPLITS)
    try:
        parts = read_json(path, dict[str, list[_Entry]])
        for part, rows in parts.items():
            for row in rows:
                dicoms += _fixed(row["id"])
                subjects.append(_number(row["subject_id"]))
                studies.append(_number(row["study_id"]))
                splits.append(names.index(PARTS[part]))
                findings[studies[-1]] = row["report"].strip()
    except (DataError, ValueError, KeyError) as error:
        what = str(error).removeprefix(f"{path}: ") if isinstance(error, DataError) else "another id or list"
        raise DataError(
            f"{path}: not R2Gen's annotation of MIMIC-CXR ({what}): lists train, val, test expected, with "
            "id, study_id, subject_id and report in each entry (that of Open-i: `mu prepare open-i`)"
        ) from error
    images = join_images(dicoms, subjects, studies, splits, roots, Table(path), "id")
    return Annotation(path, images, findings)


def _number(value: int | str) -> int:
    number = int(value)
    if not 0 <= number < 10**9:
        raise ValueError("not an id")
    return number


def _fixed(dicom: str) -> bytes:
    if not dicom or len(dicom) > ID_BYTES:
        raise ValueError("not a dicom id")
    return dicom.encode("ascii").ljust(ID_BYTES, b"\0")
