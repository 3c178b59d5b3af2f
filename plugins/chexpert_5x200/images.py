"""Where CheXpert's tables and images lie: one tree (small or full), four unpacked batches, or their zips.

Every image is known by its tail, `patient00001/study1/view1_frontal.jpg`: what stands before it differs
between the `Path` column, the folder on disk and the four batches, and no patient number is used twice.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medunifier_cli.data.contract import DataError, FileImage, ZipImage

from ..raw.tables import Table, find_table
from ..raw.tree import folders, is_leftover
from ..raw.zip_directory import zip_entries

__all__ = ["ImageFinder", "find_images_and_tables", "image_tail"]

PATIENT = re.compile(r"patient\d+")
TAIL = re.compile(r"(patient\d+)[/_](study\d+)[/_](view\d+_(?:frontal|lateral))(?:\.jpg)?")
DEPTH = 3


def image_tail(path: str) -> str | None:
    """`patient00001/study1/view1_frontal.jpg` of a path or of one of our keys, None where it is neither."""
    match = TAIL.search(path)
    return f"{match[1]}/{match[2]}/{match[3]}.jpg" if match else None


class ImageFinder:
    """Looks an image up by its tail, in folders first, then in zip archives."""

    def __init__(self, raw: Path, roots: Sequence[Path], archives: Sequence[ZipTails]) -> None:
        self._raw, self._roots, self._archives = raw, list(roots), archives

    def find(self, tail: str) -> tuple[FileImage | ZipImage, str] | None:
        """The image and its source path relative to the raw folder, None where it is missing."""
        for place, root in enumerate(self._roots):
            path = root / tail
            if path.is_file():
                # Neighbours in the table lie in one batch.
                self._roots.insert(0, self._roots.pop(place))
                return FileImage(path), path.relative_to(self._raw).as_posix()
        for archive in self._archives:
            member = archive.member(tail)
            if member is not None:
                return ZipImage(
                    archive.path, member
                ), f"{archive.path.relative_to(self._raw).as_posix()}!{member}"
        return None


class ZipTails:
    """The images of one zip archive by a 64-bit hash of their tail: 9 bytes each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: dict[str, Table] = {}
        hashes, prefixes, self._prefixes = array("Q"), array("B"), dict[str, int]()
        for entry in zip_entries(path):
            patient, name = PATIENT.search(entry.name), entry.name.rsplit("/", 1)[-1]
            if is_leftover(name):
                continue
            if patient and name.endswith(".jpg"):
                prefix = self._prefixes.setdefault(entry.name[: patient.start()], len(self._prefixes))
                prefixes.append(prefix)
                hashes.append(_hash(entry.name[patient.start() :]))
            elif name in ("train.csv", "valid.csv"):
                self.tables[name] = Table(path, entry.name)
        order = np.argsort(np.array(hashes), kind="stable")
        self._hashes, self._prefix = np.array(hashes)[order], np.array(prefixes)[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def member(self, tail: str) -> str | None:
        """Name of the member that ends in `tail`."""
        wanted = np.uint64(_hash(tail))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return None
        return list(self._prefixes)[int(self._prefix[place])] + tail


def find_images_and_tables(raw: Path) -> tuple[ImageFinder, Table, Table | None]:
    """(finder, train table, valid table) of a raw folder in any of the layouts.

    Raises:
        DataError: no train.csv, or no images.
    """
    places = list(folders(raw, DEPTH, skip=PATIENT))
    zips = [
        ZipTails(path)
        for place in places[:1]
        for path in sorted(place.glob("*.zip"))
        if not is_leftover(path.name)
    ]
    in_zips = {name: table for archive in zips for name, table in archive.tables.items()}
    train = find_table(places, "train.csv") or in_zips.get("train.csv")
    if train is None:
        raise DataError(
            f"{raw}: no train.csv here, up to {DEPTH} folders down or in a zip; it comes in batch 1"
        )
    beside = train.path.parent
    places.sort(key=lambda place: not place.is_relative_to(beside))  # stable: small beside full stay apart
    valid = find_table(places, "valid.csv") or in_zips.get("valid.csv")
    roots = [place for place in places if _has_patients(place)]
    archives = [archive for archive in zips if len(archive)]
    if not roots and not archives:
        raise DataError(f"{raw}: no folder such as train/patient00001, and no zip that holds one")
    return ImageFinder(raw, roots, archives), train, valid


def _has_patients(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(PATIENT.fullmatch(entry.name) and entry.is_dir() for entry in entries)


def _hash(tail: str) -> int:
    return int.from_bytes(hashlib.blake2b(tail.encode(), digest_size=8).digest(), "big")
