"""Find the image that a row names: beside the table, in a folder `images`, or anywhere below by its name."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from medunifier_cli.data.contract import DataError

__all__ = ["ImageFolder", "as_posix"]

SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".dcm.gz")
"""Tried where a table names images without one, as a column of ids does."""
BESIDE = ("", "images", "image", "img", "files")
"""Folders beside the table in which its paths are looked for."""


class ImageFolder:
    """The folder of a table.

    Args:
        root: of the table.
        shown: name of the table, for messages.
        listed: the images of all rows, as the table names them.
    """

    def __init__(self, root: Path, shown: str, listed: Iterable[str] = ()) -> None:
        self.root, self.shown = root, shown
        self._listed = Counter(PurePosixPath(value).name for value in {as_posix(one) for one in listed})

    def find(self, value: str, place: str) -> Path | None:
        """The file of one row; None if there is none.

        Raises:
            DataError: an address on the network, or a name that several files have.
        """
        if re.match(r"[a-zA-Z]+://", value):
            raise DataError(f"{self.shown}, {place}: the image is an address; download the images first")
        if not value or "\0" in value:
            return None
        for suffix in ("", *SUFFIXES):
            for folder in BESIDE:
                path = self.root / folder / f"{value}{suffix}".replace("\\", "/")
                if _is_file(path):
                    return path
        listed = PurePosixPath(as_posix(value))
        name = listed.name
        found = self._by_name.get(name) or self._by_stem.get(name) or []
        if len(listed.parts) > 1:
            whole = [path for path in found if _ends_with(path.parent, listed.parent)]
            # of `site1/0.png` and `site2/0.png` one may be missing: the other one is no stand-in
            found = whole or (found if self._listed[name] <= 1 else [])
        if len(found) > 1:
            shown = " and ".join(path.relative_to(self.root).as_posix() for path in found[:2])
            raise DataError(f"{self.shown}, {place}: {name} is the name of {shown}; give paths, not names")
        return found[0] if found else None

    @cached_property
    def _files(self) -> Sequence[Path]:
        """Every image below the root, by path."""
        found = []
        for folder, below, names in os.walk(self.root):
            below.sort()
            found += [Path(folder, name) for name in sorted(names) if name.lower().endswith(SUFFIXES)]
        return found

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        table: dict[str, list[Path]] = {}
        for path in self._files:
            table.setdefault(path.name, []).append(path)
        return table

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        table: dict[str, list[Path]] = {}
        for path in self._files:
            table.setdefault(path.name.removesuffix(".gz").rpartition(".")[0], []).append(path)
        return table


def as_posix(value: str) -> str:
    """A path of a table as one spelling: `.\\a\\0.png` -> `a/0.png`."""
    return posixpath.normpath(value.replace("\\", "/")) if value else ""


def _ends_with(folder: Path, end: PurePosixPath) -> bool:
    return folder.parts[-len(end.parts) :] == end.parts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text of a thousand letters is no name of a file
        return False
