"""Read the reports of MIMIC-CXR from `mimic-cxr-reports.zip`, packed or unpacked."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from medunifier_cli.data.contract import DataError, decode_text, unpack

from ..raw.zip_archive import open_zip, other_format, read_member
from .release import FEW
from .sections import WITHOUT_FINDINGS, report_sections

__all__ = ["ReportFolder", "ReportZip", "Reports", "find_reports"]


STUDY = re.compile(r"s[0-9]{1,9}\.txt")
OTHER_FORM = re.compile(r".*(?:reports|sectioned)\.(?:csv|tar|tgz|tar\.gz)")
"""Names under which reports go round in a form that is not read."""
EXPECTED = "mimic-cxr-reports.zip of MIMIC-CXR or a folder with files/p10/p10000032/s50414267.txt in it"


class Reports(ABC):
    """A source of reports, read one at a time."""

    origin: Path

    @abstractmethod
    def sections(self, subject: int, study: int) -> Mapping[str, str] | None:
        """Sections of the report, none if it says nothing about the image; None if there is no report.

        Raises:
            NotTextError: the report is not UTF-8 text.
            TooLargeError: it is larger than any report.
            DataError: it cannot be read.
        """


class ReportFiles(Reports):
    """One file per report, as released."""

    @abstractmethod
    def read(self, subject: int, study: int) -> bytes | None:
        """The unaltered report; None if there is none."""

    def sections(self, subject: int, study: int) -> Mapping[str, str] | None:
        content = self.read(subject, study)
        if content is None:
            return None
        return {} if study in WITHOUT_FINDINGS else report_sections(decode_text(content, f"s{study}.txt"))


class ReportFolder(ReportFiles):
    """`files/p10/p10000032/s50414267.txt` under a folder."""

    def __init__(self, origin: Path) -> None:
        self.origin = origin

    def read(self, subject: int, study: int) -> bytes | None:
        path = self.origin / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}.txt"
        try:
            with path.open("rb") as file:
                return unpack.read_at_most(file, unpack.REPORT_BYTES, path.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


class ReportZip(ReportFiles):
    """The same tree inside a zip archive, read without unpacking."""

    def __init__(self, origin: Path) -> None:
        self.origin = origin
        self._archive = open_zip(origin)
        # By study alone, so that an archive repacked with other folders around `files/` works too.
        self._member_of_study: dict[int, str] = {}
        for member in self._archive.namelist():
            name = member.rsplit("/", 1)[-1]
            if name.startswith("s") and name.endswith(".txt") and STUDY.fullmatch(name):
                self._member_of_study.setdefault(int(name[1:-4]), member)
        if not self._member_of_study:
            raise DataError(f"{origin} contains no report such as files/p10/p10000032/s50414267.txt")

    def read(self, subject: int, study: int) -> bytes | None:
        member = self._member_of_study.get(study)
        if member is None:
            return None
        return read_member(self._archive, member)


def find_reports(user_path: str, roots: Sequence[Path]) -> Reports:
    """`user_path` (a folder or the zip) unless it is empty, else the first reports in the release folders.

    Raises:
        DataError: no reports there.
    """
    if user_path:
        reports = _reports_at(Path(user_path))
        if reports is None:
            raise DataError(f"{user_path}: not {EXPECTED}")
        return reports
    for root in roots:
        for path in (root / "mimic-cxr-reports", root / "mimic-cxr-reports.zip", root / "reports", root):
            reports = _reports_at(path)
            if reports is not None:
                return reports
    for root in roots:
        for path in sorted(root.iterdir()):
            if path.is_file() and OTHER_FORM.fullmatch(path.name):
                _reports_at(path)  # says what it is
    raise DataError(
        f"{roots[0]}: no reports. They come with MIMIC-CXR (the DICOM release), not with MIMIC-CXR-JPG: "
        "put mimic-cxr-reports.zip there, or give its path with -o reports=PATH"
    )


def _reports_at(path: Path) -> Reports | None:
    if path.is_file():
        if other := other_format(path):
            unpack = "; unpack it and give the folder" if other.endswith("archive") else ""
            raise DataError(f"{path} is {other}, not {EXPECTED}{unpack}")
        return ReportZip(path)
    for folder in (path, path.parent) if path.name == "files" else (path,):
        for group in sorted((folder / "files").glob("p1[0-9]")):
            # Only a few patients: the JPG release has 65,379 patient folders and not one report.
            patients = islice(group.glob("p*"), FEW)
            if any(next(patient.glob("s*.txt"), None) for patient in patients):
                return ReportFolder(folder)
    return None
