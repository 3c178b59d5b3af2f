"""Reports of MIMIC-CXR: from `mimic-cxr-reports.zip` as it is, or unpacked wherever people unpack it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from medunifier_cli.data.contract import DataError

from ..raw.zip_directory import read_member, zip_entries
from .release import FEW

__all__ = ["ReportFolder", "ReportZip", "Reports", "find_reports"]


class Reports(ABC):
    """Where reports are read from, one at a time."""

    origin: Path

    @abstractmethod
    def read(self, subject: int, study: int) -> str | None:
        """The report as it is, None where there is none."""


class ReportFolder(Reports):
    """`files/p10/p10000032/s50414267.txt` under a folder."""

    def __init__(self, origin: Path) -> None:
        self.origin = origin

    def read(self, subject: int, study: int) -> str | None:
        path = self.origin / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}.txt"
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None


class ReportZip(Reports):
    """The same tree inside a zip archive; 40 bytes are kept of each report."""

    def __init__(self, origin: Path) -> None:
        self.origin = origin
        columns = [array("q") for _ in range(5)]
        for entry in zip_entries(origin):
            name = entry.name.rsplit("/", 1)[-1]
            if name.startswith("s") and name.endswith(".txt") and name[1:-4].isdigit():
                values = (int(name[1:-4]), entry.offset, entry.size, entry.method, entry.crc)
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
        if not columns[0]:
            raise DataError(f"{origin} holds no report such as files/p10/p10000032/s50414267.txt")
        table = np.array(columns)
        self._table = table[:, np.argsort(table[0], kind="stable")]
        self._file = origin.open("rb")

    def read(self, subject: int, study: int) -> str | None:
        place = int(np.searchsorted(self._table[0], study))
        if place == self._table.shape[1] or self._table[0, place] != study:
            return None
        place_in_zip = (int(value) for value in self._table[1:, place])
        return read_member(self._file, *place_in_zip).decode("utf-8", errors="replace")


def find_reports(given: str, roots: Sequence[Path]) -> Reports:
    """`given` by the user (a folder or the zip), else the first place in the release folders with reports.

    Raises:
        DataError: none found.
    """
    if given:
        path = Path(given)
        found = _reports_at(path)
        if found is None:
            raise DataError(
                f"{path}: neither mimic-cxr-reports.zip nor a folder with files/p10/... and s*.txt in it"
            )
        return found
    for root in roots:
        for place in (root / "mimic-cxr-reports", root / "mimic-cxr-reports.zip", root / "reports", root):
            found = _reports_at(place)
            if found is not None:
                return found
    raise DataError(
        f"{roots[0]}: no reports. They come with MIMIC-CXR (the DICOM release), not with MIMIC-CXR-JPG: "
        "put mimic-cxr-reports.zip there, or name its place with -o reports=PATH"
    )


def _reports_at(path: Path) -> Reports | None:
    if path.is_file():
        return ReportZip(path)
    for folder in (path, path.parent) if path.name == "files" else (path,):
        for group in sorted((folder / "files").glob("p1[0-9]")):
            patients = islice(group.glob("p*"), FEW)  # the JPG release has 65,379 of them, and no report
            if any(next(patient.glob("s*.txt"), None) for patient in patients):
                return ReportFolder(folder)
    return None
