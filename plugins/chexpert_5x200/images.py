"""Find CheXpert's tables and images: one tree (small or full release), four unpacked batches, or their zips.

An image is identified by the end of its path, `patient00001/study1/view1_frontal.jpg`, here called its tail.
What precedes the tail differs between the `Path` column, the folder on disk and the four batches, while a
patient number is never used twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from medunifier_cli.data.contract import DataError, FileImage, ZipImage

from ..raw.tables import Table, find_table
from ..raw.tree import folders, is_leftover
from ..raw.zip_archive import open_zip

__all__ = ["CheXpertFiles", "find_images_and_tables", "image_tail"]

PATIENT = re.compile(r"patient[0-9]{1,9}")
TAIL = re.compile(
    r"(patient[0-9]{1,9})[/_](study[0-9]{1,9})[/_](view[0-9]{1,9}_(?:frontal|lateral))(?:\.jpg|\.png)?"
)
PLUS = "df_chexpert_plus*.csv*"
"""Table of reports that comes with CheXpert Plus."""
TABLES = {"train": "train.csv", "valid": "valid.csv", "test": "test_labels.csv"}
"""Split -> its table; the last one comes with the official test set."""
DEPTH = 3
"""Levels of folders below the raw folder that are searched."""


def image_tail(path: str) -> str | None:
    """`patient00001/study1/view1_frontal.jpg` from a path or a sample key, None if it is neither."""
    match = TAIL.search(path)
    return f"{match[1]}/{match[2]}/{match[3]}.jpg" if match else None


class CheXpertFiles:
    """All images of a download: looked up in folders first, then in zip archives."""

    def __init__(self, raw: Path, roots: Sequence[Path], archives: Sequence[ZippedImages]) -> None:
        self._raw, self._roots, self._archives = raw, list(roots), archives

    def find(self, tail: str) -> tuple[FileImage | ZipImage, str] | None:
        """The image and its path relative to the raw folder; None if it is missing."""
        for index, root in enumerate(self._roots):
            for path in (root / tail, (root / tail).with_suffix(".png")):  # PNG: copies, and CheXpert Plus
                if path.is_file():
                    # Neighbouring rows of the table are in one batch: look there first next time.
                    self._roots.insert(0, self._roots.pop(index))
                    return FileImage(path), path.relative_to(self._raw).as_posix()
        for archive in self._archives:
            member = archive.member(tail)
            if member is not None:
                source = f"{archive.path.relative_to(self._raw).as_posix()}!{member}"
                return ZipImage(archive.path, member), source
        return None


class ZippedImages:
    """The images of one zip archive by their tail, and the tables in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: dict[str, Table] = {}
        self._members: dict[str, str] = {}
        with open_zip(path) as archive:
            for member in archive.namelist():
                patient, name = PATIENT.search(member), member.rsplit("/", 1)[-1]
                if is_leftover(name):
                    continue
                if patient and name.endswith((".jpg", ".png")):
                    self._members.setdefault(f"{member[patient.start() : -4]}.jpg", member)
                elif name in TABLES.values():
                    self.tables[name] = Table(path, member)

    def __len__(self) -> int:
        return len(self._members)

    def member(self, tail: str) -> str | None:
        """Name of the member that ends in `tail`."""
        return self._members.get(tail)


def find_images_and_tables(raw: Path) -> tuple[CheXpertFiles, Table, dict[str, Table]]:
    """(images, train table, those of `valid` and `test` that are there) of a raw folder in any layout.

    Raises:
        DataError: no train.csv, or no images.
    """
    search = list(folders(raw, DEPTH, skip=PATIENT))
    zips = [ZippedImages(path) for path in sorted(raw.glob("*.zip")) if not is_leftover(path.name)]
    in_zips = {name: table for archive in zips for name, table in archive.tables.items()}
    train = find_table(search, "train.csv") or in_zips.get("train.csv")
    if train is None:
        plus = next((path.name for folder in search for path in sorted(folder.glob(PLUS))), None)
        if plus is not None:
            raise DataError(
                f"{raw}: {plus} is CheXpert Plus, whose reports and labels are not read; put train.csv of "
                "CheXpert-v1.0 beside it, which labels the same images"
            )
        raise DataError(
            f"{raw}: no train.csv here, up to {DEPTH} folders down or in a zip; it comes in batch 1"
        )
    # Prefer folders below the one that holds train.csv: if the small and the full release are both there, the
    # images must come from the release whose table is read. The sort is stable.
    release = train.path.parent
    search.sort(key=lambda folder: not folder.is_relative_to(release))
    others = {}
    for split in ("valid", "test"):
        if table := find_table(search, TABLES[split]) or in_zips.get(TABLES[split]):
            others[split] = table
    roots = [folder for folder in search if _has_patients(folder)]
    archives = [archive for archive in zips if len(archive)]
    if not roots and not archives:
        raise DataError(f"{raw}: no folder such as train/patient00001, and no zip that holds one")
    return CheXpertFiles(raw, roots, archives), train, others


def _has_patients(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(PATIENT.fullmatch(entry.name) and entry.is_dir() for entry in entries)
