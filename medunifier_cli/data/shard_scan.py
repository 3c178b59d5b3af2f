"""Find the samples of a tar: keys, offsets and labels. Used for shards that come without an index."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medunifier_cli.errors import DataError

IMAGE_SUFFIXES = ("png", "jpg", "jpeg")


@dataclass(frozen=True)
class IndexRow:
    """One sample of one shard, as the index describes it."""

    key: str
    subject: str
    image: tuple[int, int]
    """Offset and size of the image file, in bytes."""
    json: tuple[int, int]
    """Offset and size of the metadata, in bytes."""
    labels: Mapping[str, float | None]


def digest64(text: str) -> int:
    """64-bit hash that, unlike `hash`, is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def scan_shard(path: Path) -> list[IndexRow]:
    """All samples of a shard, in the order of their first member.

    Raises:
        DataError: the tar is truncated or no tar, or a sample lacks its image or JSON.
    """
    members: dict[str, dict[str, tuple[int, int]]] = {}
    metas: dict[str, dict[str, object]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = folder + slash + stem
                if not member.isfile():
                    continue
                members.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
                if suffix.lower() == "json":
                    body = tar.extractfile(member)
                    metas[key] = json.loads(body.read() if body else b"")
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
    return [_row(path, key, parts, metas.get(key, {})) for key, parts in members.items()]


def _row(path: Path, key: str, parts: Mapping[str, tuple[int, int]], meta: Mapping[str, object]) -> IndexRow:
    image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    if image is None or "json" not in parts:
        raise DataError(f"{path}: sample {key!r} lacks its {'.json' if image else 'image'}")
    labels = meta.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise DataError(f"{path}: sample {key!r} has labels that are not a mapping")
    return IndexRow(key, str(meta.get("subject", "")), image, parts["json"], labels)
