"""Looking through a tar for samples: offsets, keys and labels. Needed where no index was written."""

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
class Row:
    """One sample of one shard."""

    key: str
    subject: str
    image: tuple[int, int]
    """Offset and size of the image file, in bytes."""
    json: tuple[int, int]
    """Offset and size of the metadata, in bytes."""
    labels: Mapping[str, float | None]


def digest64(text: str) -> int:
    """64-bit hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def scan_shard(path: Path) -> list[Row]:
    """All samples of a shard, in the order of their first member.

    Raises:
        DataError: not a whole tar, or a sample without image or JSON.
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
        with open(path, "rb") as file:  # tarfile is content with a file that stops between two members
            file.seek(end)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("no end-of-archive block")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole tar file; it was cut or is something else") from error
    except ValueError as error:
        raise DataError(f"{path}: a .json in it is not JSON") from error
    return [_row(path, key, parts, metas.get(key, {})) for key, parts in members.items()]


def _row(path: Path, key: str, parts: Mapping[str, tuple[int, int]], meta: Mapping[str, object]) -> Row:
    image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    if image is None or "json" not in parts:
        raise DataError(f"{path}: sample {key!r} lacks its {'.json' if image else 'image'}")
    labels = meta.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise DataError(f"{path}: sample {key!r} has labels that are no mapping")
    return Row(key, str(meta.get("subject", "")), image, parts["json"], labels)
