"""Finding one's way in a raw download: leftovers to pass over, folders to look into, images by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from medunifier_cli.data.contract import DataError

__all__ = ["IMAGE_SUFFIXES", "archives", "folders", "image_paths", "image_stem", "is_leftover", "need_folder"]

IMAGE_SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")
"""In order of preference, where one image lies there more than once."""


def is_leftover(name: str) -> bool:
    """Files that downloads leave behind: wget's `index.html*`, gsutil's partial `*.gstmp`, macOS's `._*`."""
    return name.startswith(("index.html", "._")) or name.endswith(".gstmp") or name == ".DS_Store"


def need_folder(raw: Path, needs: str) -> None:
    """Raises: DataError if `raw` is not a folder or has nothing in it."""
    if not raw.is_dir():
        raise DataError(f"{raw}: no such folder. Needed: {needs}")
    if all(is_leftover(name) for name in os.listdir(raw)):
        raise DataError(f"{raw} is empty. Needed: {needs}")


def folders(raw: Path, depth: int, skip: re.Pattern[str] | None = None) -> Iterator[Path]:
    """`raw` and the folders under it down to `depth`, nearest first and by name; `skip` is not entered."""
    level = [raw]
    for _ in range(depth + 1):
        yield from level
        below = []
        for folder in level:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir())
            below += [folder / name for name in names if not (skip and skip.fullmatch(name))]
        level = below


def archives(raw: Path) -> list[str]:
    """Names of archives that lie in `raw` itself: what an error suggests to unpack."""
    endings = (".zip", ".tgz", ".tar.gz", ".tar")
    return sorted(name for name in os.listdir(raw) if name.endswith(endings) and not is_leftover(name))


def image_stem(name: str) -> str | None:
    """File name without its image suffix, None for anything that is no image or is a leftover."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES and not is_leftover(name) else None


def image_paths(
    raw: Path, wanted: Callable[[str], str | None], skip: re.Pattern[str] | None = None
) -> dict[str, str]:
    """Paths, relative to `raw`, of the images `wanted` gives an id to; `wanted` sees the stem of a file name.

    Where an id lies there twice, DICOM is taken before PNG before JPEG, then the first path by name.
    """
    found: dict[str, str] = {}
    linked: set[str] = set()
    for folder, below, names in os.walk(raw, followlinks=True):
        if os.path.islink(folder):
            target = os.path.realpath(folder)
            if target in linked:  # a link that leads back up would never end
                below.clear()
                continue
            linked.add(target)
        below[:] = sorted(name for name in below if not (skip and skip.fullmatch(name)))
        for name in names:
            stem = image_stem(name)
            image_id = wanted(stem) if stem is not None else None
            if image_id is None:
                continue
            path = os.path.relpath(os.path.join(folder, name), raw).replace(os.sep, "/")
            if image_id not in found or _rank(path) < _rank(found[image_id]):
                found[image_id] = path
    return found


def _rank(path: str) -> tuple[int, str]:
    return IMAGE_SUFFIXES.index(os.path.splitext(path)[1].lower()), path
