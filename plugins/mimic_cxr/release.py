"""Which release of MIMIC-CXR lies where: MIMIC-CXR-JPG or MIMIC-CXR (DICOM), side by side or alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medunifier_cli.data.contract import DataError

from ..raw.tree import folders

__all__ = ["FEW", "Release", "find_release", "release_folders"]

FEW = 50
"""Patients of a group that are looked at to see what a folder holds."""

SUFFIXES = {".jpg": "jpg", ".dcm": "dicom", ".dcm.gz": "dicom"}
"""An old page of the documentation lists `.dcm.gz`; the record list says `.dcm`."""

GROUP_FOLDER = re.compile(r"p1\d")

DEPTH = 5
"""`physionet.org/files/mimic-cxr-jpg/2.0.0` is four folders down; one more for a folder of one's own."""


@dataclass(frozen=True)
class Release:
    """A folder with `files/p10/p10000032/s50414267/<dicom id><suffix>`."""

    root: Path
    suffix: str

    def image(self, subject: int, study: int, dicom: str) -> str:
        """Where an image lies, relative to `root`; a string, since paths are slow and there are 377,110."""
        return f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}{self.suffix}"


def release_folders(raw: Path) -> list[Path]:
    """Folders that may hold tables, reports or `files/`, nearest first."""
    return list(folders(raw, DEPTH, skip=GROUP_FOLDER))


def find_release(places: Sequence[Path], wanted: str) -> Release:
    """The first folder with images of the release asked for; `auto` takes JPG before DICOM.

    Raises:
        DataError: no such folder.
    """
    releases = [release for place in places if (release := _release_at(place))]
    for kind in ("jpg", "dicom"):
        for release in releases:
            if wanted in ("auto", kind) and SUFFIXES[release.suffix] == kind:
                return release
    what = {"auto": "images", "jpg": "JPG images", "dicom": "DICOM images"}[wanted]
    example = "files/p10/p10000032/s50414267/<dicom id>.jpg"
    raise DataError(f"{places[0]}: no {what} such as {example}, here or up to {DEPTH} folders down")


def _release_at(place: Path) -> Release | None:
    for group in sorted((place / "files").glob("p1[0-9]")):
        for patient in islice(group.glob("p*"), FEW):
            for path in patient.glob("s*/*"):
                for suffix in SUFFIXES:
                    if path.name.endswith(suffix):
                        return Release(place, suffix)
    return None
