"""Find the folder of MIMIC-CXR-JPG or MIMIC-CXR (DICOM) in a download that may contain both."""

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
"""Patient folders of a group that are inspected to see what a release contains."""

SUFFIXES = {".jpg": "jpg", ".dcm": "dicom", ".dcm.gz": "dicom"}
"""An old page of the documentation lists `.dcm.gz`; the record list says `.dcm`."""

GROUP_FOLDER = re.compile(r"p1\d")

DEPTH = 5
"""`physionet.org/files/mimic-cxr-jpg/2.0.0` is four folders down; one more for a folder of the user's."""


@dataclass(frozen=True)
class Release:
    """A folder with `files/p10/p10000032/s50414267/<dicom id><suffix>`."""

    root: Path
    suffix: str
    folder: str = "files"
    """Folder of the patient groups; `images` in R2Gen's copy."""

    def image(self, subject: int, study: int, dicom: str) -> str:
        """Path of an image relative to `root`: a string, because 377,110 `Path` objects are slow to build."""
        return f"{self.folder}/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}{self.suffix}"


def release_folders(raw: Path) -> list[Path]:
    """Folders that may hold tables, reports or `files/`, nearest first."""
    return list(folders(raw, DEPTH, skip=GROUP_FOLDER))


def find_release(search: Sequence[Path], release_kind: str, inside: Sequence[str] = ("files",)) -> Release:
    """The first folder with images of the kind `jpg` or `dicom`; `auto` prefers JPG.

    Args:
        inside: names that the folder of the patient groups may have.

    Raises:
        DataError: no such folder.
    """
    releases = [release for folder in search for name in inside if (release := _release_at(folder, name))]
    for kind in ("jpg", "dicom"):
        for release in releases:
            if release_kind in ("auto", kind) and SUFFIXES[release.suffix] == kind:
                return release
    images = {"auto": "images", "jpg": "JPG images", "dicom": "DICOM images"}[release_kind]
    example = f"{inside[0]}/p10/p10000032/s50414267/<dicom id>.jpg"
    raise DataError(f"{search[0]}: no {images} such as {example}, here or up to {DEPTH} folders down")


def _release_at(folder: Path, inside: str) -> Release | None:
    for group in sorted((folder / inside).glob("p1[0-9]")):
        for patient in islice(group.glob("p*"), FEW):
            for path in patient.glob("s*/*"):
                for suffix in SUFFIXES:
                    if path.name.endswith(suffix):
                        return Release(folder, suffix, inside)
    return None
