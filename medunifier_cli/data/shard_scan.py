"""Find the shards of a folder and the samples of a tar: keys, offsets, labels. For shards without an index.

That is for shards of other tools: keys with dots, captions in `.txt`, and what macOS and archivers leave in
a tar. What cannot be read ends in one line that names what was found and what is expected.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier_cli.errors import DataError

IMAGE_SUFFIXES = ("png", "jpg", "jpeg")
TEXT = "txt"
"""Suffix of a file that holds the caption of its sample."""
EXPECTED = "<key>.png or .jpg with <key>.json or <key>.txt"
SHARD_NAME = re.compile(r"(?P<split>[^.].*)[-_](?P<number>\d+)\.tar")
LEFTOVER = re.compile(r"\._.*|\.DS_Store|__MACOSX|PaxHeaders?(\..*)?|@LongLink")
"""Names, of a file or a folder, of what macOS and archivers add to a tar."""
NOTES = re.compile(r"(read_?me|licen[cs]e|copying|notice|changelog|sources?|index)\b.*", re.IGNORECASE)
"""Names of files about a data set, which are no captions even where captions are `.txt`."""
SHOWN = 3
"""Names that a message lists."""

Place = tuple[int, int]
"""Offset and size of a file's contents in its tar, in bytes."""
NOWHERE: Place = (0, 0)


@dataclass(frozen=True)
class IndexRow:
    """One sample of one shard, as the index describes it."""

    key: str
    subject: str
    image: Place
    json: Place
    """The metadata; `NOWHERE` in a sample without."""
    labels: Mapping[str, float | None]
    text: Place = NOWHERE
    """The caption, in shards from elsewhere."""


def digest64(text: str) -> int:
    """64-bit hash that, unlike `hash`, is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def shards_by_split(folder: Path) -> dict[str, list[str]]:
    """File names of the shards of each split, in order."""
    matches = [match for path in folder.glob("*.tar") if (match := SHARD_NAME.fullmatch(path.name))]
    by_split: dict[str, list[str]] = {}
    # By number and not by name: without leading zeros, `train-10.tar` would come before `train-9.tar`.
    for match in sorted(matches, key=lambda match: (int(match["number"]), match.string)):
        by_split.setdefault(match["split"], []).append(match.string)
    return by_split


def no_split(folder: Path, split: str, splits: Iterable[str]) -> str:
    """The message for a folder of shards without this split: what is there, and how shards must be called."""
    there = sorted(splits)
    if there:
        return f"{folder}: no split {split!r}; available: {', '.join(there)}"
    tars = sorted(path.name for path in folder.rglob("*.tar*") if not LEFTOVER.fullmatch(path.name))
    if not tars:
        return f"{folder}: no split {split!r}; the folder has no shards"
    return (
        f"{folder}: no split {split!r}; shards must lie in this folder and be called <split>-<number>.tar, "
        f"as {split}-000000.tar, but there are {_listed(tars)}; rename or link them"
    )


def scan_shard(path: Path) -> list[IndexRow]:
    """All samples of a shard, in the order of their first member.

    Raises:
        DataError: the tar is truncated or no tar, or a sample lacks its image or its JSON or text.
    """
    members: dict[str, Place] = {}
    metas: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if not member.isfile() or any(map(LEFTOVER.fullmatch, member.name.split("/"))):
                    continue
                members[member.name] = (member.offset_data, member.size)
                if member.name.lower().endswith(".json"):
                    body = tar.extractfile(member)
                    metas[member.name] = json.loads(body.read() if body else b"")
        # tarfile accepts a file that was cut between two members; the end-of-archive block shows it was not.
        with open(path, "rb") as file:
            file.seek(end)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("no end-of-archive block")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a complete tar file; it is truncated, or something else") from error
    except ValueError as error:
        raise DataError(f"{path}: contains a .json file that is not JSON") from error
    samples = _samples(members)
    if members and not samples:
        raise DataError(f"{path}: holds no sample; expected {EXPECTED}, found {_listed(list(members))}")
    return [_row(path, key, names, members, metas) for key, names in samples.items()]


def _samples(members: Iterable[str]) -> dict[str, dict[str, str]]:
    """Key -> suffix -> name of the member."""
    by_key: dict[str, dict[str, str]] = {}
    for name in members:
        key, suffix = _first_dot(name)
        by_key.setdefault(key, {})[suffix] = name
    # WebDataset ends a key at its first dot, so that `7.mask.png` belongs to sample 7. Where this leaves a
    # key without its image or its text, keys hold dots, as UIDs do, and end at the last one.
    dotted = {key for key, names in by_key.items() if not _whole(names)}
    samples: dict[str, dict[str, str]] = {}
    for name in members:
        key, suffix = _first_dot(name)
        if key in dotted and suffix:
            key, _, suffix = name.rpartition(".")
        samples.setdefault(key, {})[suffix.lower()] = name
    captions = any(_image(names) and TEXT in names and "json" not in names for names in samples.values())
    return {key: names for key, names in samples.items() if _meant(key, names, captions)}


def _first_dot(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _whole(names: Mapping[str, str]) -> bool:
    return bool(_image(names)) and ("json" in names or TEXT in names)


def _meant(key: str, names: Mapping[str, str], captions: bool) -> bool:
    """Whether these files are a sample, whole or not, and no README or checksum beside the samples."""
    if _image(names) or "json" in names:
        return True
    # A text without an image has lost it where texts are captions, and is nobody's elsewhere.
    return captions and TEXT in names and not NOTES.fullmatch(key.rpartition("/")[2])


def _image(names: Mapping[str, str]) -> str | None:
    return next((names[suffix] for suffix in IMAGE_SUFFIXES if suffix in names), None)


def _row(
    path: Path,
    key: str,
    names: Mapping[str, str],
    members: Mapping[str, Place],
    metas: Mapping[str, Any],
) -> IndexRow:
    image, text, json_file = _image(names), names.get(TEXT), names.get("json")
    if image is None or not (json_file or text):
        lacks = "its image" if image is None else "its .json, or a .txt"
        found = ", ".join(f".{suffix}" for suffix in names)
        raise DataError(f"{path}: sample {key!r} lacks {lacks}; expected {EXPECTED}, found {found}")
    meta = metas[json_file] if json_file else {}
    if not isinstance(meta, Mapping):
        raise DataError(f"{path}: sample {key!r} has a .json that holds no object {{...}}")
    for name in ("labels", "sections"):
        if not isinstance(meta.get(name) or {}, Mapping):
            raise DataError(f"{path}: sample {key!r} has {name} that are not a mapping")
    return IndexRow(
        key=key,
        subject=str(meta.get("subject", "")),
        image=members[image],
        json=members[json_file] if json_file else NOWHERE,
        labels=meta.get("labels") or {},
        text=members[text] if text else NOWHERE,
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
