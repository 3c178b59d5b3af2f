"""Search a raw download: ignore leftovers of download tools, list folders, find images by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from medunifier_cli.data.contract import DataError

__all__ = [
    "IMAGE_SUFFIXES", "file_below", "folders", "image_paths", "image_stem", "is_leftover", "leads_below",
    "need_folder", "unpack_hint",
]  # fmt: skip

IMAGE_SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")
"""In order of preference, for images that are present in several formats."""


def is_leftover(name: str) -> bool:
    """True for what download tools leave behind: wget's `index.html*`, gsutil's `*.gstmp`, macOS's `._*`."""
    return name.startswith(("index.html", "._")) or name.endswith(".gstmp") or name == ".DS_Store"


def need_folder(raw: Path, needs: str) -> None:
    """Check that there is something to read; `needs` becomes part of the message.

    Raises:
        DataError: `raw` is not a folder, or is empty apart from leftovers.
    """
    if not raw.is_dir():
        raise DataError(f"{raw}: no such folder. Needed: {needs}")
    if all(is_leftover(name) for name in os.listdir(raw)):
        raise DataError(f"{raw} is empty. Needed: {needs}")


def folders(raw: Path, depth: int, skip: re.Pattern[str] | None = None) -> Iterator[Path]:
    """`raw` and its subfolders down to `depth`, nearest first, then by name; none that matches `skip`."""
    level = [raw]
    for _ in range(depth + 1):
        yield from level
        below = []
        for folder in level:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir())
            below += [folder / name for name in names if not (skip and skip.fullmatch(name))]
        level = below


def file_below(folder: Path, name: str) -> Path | None:
    """The file that a table names, if it is there; None also for a name that leads out of the folder."""
    path = folder / name
    # not `Path.is_file`, which raises for a name that is too long
    return path if leads_below(name) and os.path.isfile(path) else None


def leads_below(name: str) -> bool:
    """Whether a path is relative and does not go up."""
    parts = PurePosixPath(name)
    return not parts.is_absolute() and ".." not in parts.parts


def unpack_hint(raw: Path, ignore: str = "") -> str:
    """`; unpack X.zip, Y.tgz first` for the archives in `raw`, empty if there are none: the end of an error.

    Args:
        ignore: archives whose name contains this text are read as they are and need no unpacking.
    """
    endings = (".zip", ".tgz", ".tar.gz", ".tar")
    archives = [name for name in os.listdir(raw) if name.endswith(endings) and not is_leftover(name)]
    packed = ", ".join(sorted(name for name in archives if not (ignore and ignore in name)))
    return f"; unpack {packed} first" if packed else ""


def image_stem(name: str) -> str | None:
    """File name without its image suffix; None for a leftover or anything that is not an image."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES and not is_leftover(name) else None


def image_paths(
    raw: Path, id_of: Callable[[str], str | None], skip: re.Pattern[str] | None = None
) -> dict[str, str]:
    """Image id -> path relative to `raw`.

    If several files have the same id, DICOM is preferred to PNG, PNG to JPEG, then the first path by name.

    Args:
        id_of: maps the stem of a file name to an image id, or to None to ignore the file.
        skip: names of folders that are not entered.
    """
    paths: dict[str, str] = {}
    followed: set[str] = set()
    for folder, below, names in os.walk(raw, followlinks=True):
        if os.path.islink(folder):
            target = os.path.realpath(folder)
            if target in followed:  # a link to one of its own parents would be followed without end
                below.clear()
                continue
            followed.add(target)
        below[:] = sorted(name for name in below if not (skip and skip.fullmatch(name)))
        for name in names:
            stem = image_stem(name)
            image_id = id_of(stem) if stem is not None else None
            if image_id is None:
                continue
            path = os.path.relpath(os.path.join(folder, name), raw).replace(os.sep, "/")
            if image_id not in paths or _preference(path) < _preference(paths[image_id]):
                paths[image_id] = path
    return paths


def _preference(path: str) -> tuple[int, str]:
    return IMAGE_SUFFIXES.index(os.path.splitext(path)[1].lower()), path
