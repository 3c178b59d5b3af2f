"""Find the shards of a folder and the samples of a tar: keys, offsets, labels. For shards without an index.

That is for shards of other tools: keys with dots, captions in `.txt`, and what macOS and archivers leave in
a tar. What cannot be read ends in one line that names what was found and what is expected.
"""

from __future__ import annotations

import difflib
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from medunifier_cli.data.disk.index import NOWHERE, IndexRow, Place
from medunifier_cli.data.disk.manifest import MANIFEST
from medunifier_cli.data.disk.tar import DAMAGED, members
from medunifier_cli.data.disk.unpack import IMAGE_BYTES, META_BYTES, too_large
from medunifier_cli.errors import DataError
from medunifier_cli.parsing import parse_json

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
NAME_BYTES = 512
"""Longest name of a file in a shard: every row of the index has room for the longest key."""


class Meta(TypedDict, total=False):
    """What is relied on in the `<key>.json` of a sample; more may be there."""

    sections: dict[str, str | None] | None
    labels: dict[str, float | bool | None] | None
    caption: str | None
    """In shards of img2dataset."""
    subject: Any


def shards_by_split(folder: Path) -> dict[str, list[str]]:
    """File names of the shards of each split, in order."""
    matches = [match for path in folder.glob("*.tar") if (match := SHARD_NAME.fullmatch(path.name))]
    by_split: dict[str, list[str]] = {}
    # By number and not by name: without leading zeros, `train-10.tar` would come before `train-9.tar`.
    for match in sorted(matches, key=lambda match: (int(match["number"]), match.string)):
        by_split.setdefault(match["split"], []).append(match.string)
    return by_split


def no_folder(folder: Path) -> str:
    """The message for a folder of shards that is not there, with the nearest of those beside it."""
    there = [path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}")]
    nearest = difflib.get_close_matches(folder.name, there, n=1)
    verb = f"mu prepare {folder.name}" if folder.parent.name == "shards" else "mu prepare"
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"run `{verb}` first"
    return f"{folder}: no such folder of shards; {hint}"


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
        DataError: the tar is truncated or no tar; a sample lacks its image or its JSON or text; its JSON is
            damaged, or a file of it larger than any is.
    """
    places: dict[str, Place] = {}
    metas: dict[str, Meta] = {}
    try:
        end = 0
        for tar, member in members(path):
            end = max(0, member.offset_data + -(-member.size // 512) * 512)
            name = member.name
            if not member.isfile() or any(map(LEFTOVER.fullmatch, name.split("/"))):
                continue
            _check_member(path, name, member.size)
            places[name] = (member.offset_data, member.size)
            if name.lower().endswith(".json"):
                body = tar.extractfile(member)
                metas[name] = _relied_on(body.read() if body else b"", f"{path}: {name}")
        # tarfile accepts a file that was cut between two members; the end-of-archive block shows it was not.
        with open(path, "rb") as file:
            file.seek(end)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("no end-of-archive block")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except DAMAGED as error:
        raise DataError(f"{path}: not a complete tar file; it is truncated, or something else") from error
    samples = _samples(places)
    if places and not samples:
        raise DataError(f"{path}: holds no sample; expected {EXPECTED}, found {_listed(list(places))}")
    return [_row(path, key, names, places, metas) for key, names in samples.items()]


def _check_member(path: Path, name: str, size: int) -> None:
    """Refuse a file of a sample that cannot be one, before anything of it is read."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:  # tarfile keeps other bytes as half characters
        raise DataError(f"{path}: holds a file whose name is not UTF-8; make the shard again") from error
    if length > NAME_BYTES:
        raise DataError(f"{path}: {name}: a name of more than {NAME_BYTES} bytes; make the shard again")
    suffix = name.rpartition(".")[2].lower()
    limit = IMAGE_BYTES if suffix in IMAGE_SUFFIXES else META_BYTES if suffix in ("json", TEXT) else None
    if size < 0:
        raise tarfile.ReadError("a member of negative size")
    if limit is not None and size > limit:
        raise too_large(f"{path}: {name}", limit)


def _relied_on(body: bytes, shown: str) -> Meta:
    """What the index needs of a `.json`; the rest may be a thousand times as much."""
    meta = parse_json(body, Meta, shown)
    return {"labels": meta.get("labels"), "subject": str(meta.get("subject", ""))}


def _samples(file_names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Key -> suffix -> name of the member."""
    by_key: dict[str, dict[str, str]] = {}
    for name in file_names:
        key, suffix = _first_dot(name)
        by_key.setdefault(key, {})[suffix] = name
    # WebDataset ends a key at its first dot, so that `7.mask.png` belongs to sample 7. Where this leaves a
    # key without its image or its text, keys hold dots, as UIDs do, and end at the last one.
    dotted = {key for key, names in by_key.items() if not _whole(names)}
    samples: dict[str, dict[str, str]] = {}
    for name in file_names:
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
    places: Mapping[str, Place],
    metas: Mapping[str, Any],
) -> IndexRow:
    image, text, json_file = _image(names), names.get(TEXT), names.get("json")
    if image is None or not (json_file or text):
        lacks = "its image" if image is None else "its .json, or a .txt"
        found = ", ".join(f".{suffix}" for suffix in names)
        raise DataError(f"{path}: sample {key!r} lacks {lacks}; expected {EXPECTED}, found {found}")
    meta: Meta = metas[json_file] if json_file else {}
    return IndexRow(
        key=key,
        subject=meta.get("subject", ""),
        image=places[image],
        json=places[json_file] if json_file else NOWHERE,
        labels=meta.get("labels") or {},
        text=places[text] if text else NOWHERE,
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
