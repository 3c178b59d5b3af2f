"""Writing shards: whole files or none, the same bytes every time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medunifier_cli.data.shard_scan import Row
from medunifier_cli.files import TEMPORARY, atomic_write, explained, sync
from medunifier_cli.prepare.render import Reject, Rendered
from medunifier_cli.prepare.walk import Chunk

RECEIPTS = ".progress"
"""Folder in the shards' folder with one small file per finished shard; a restart goes on from them."""
RECORD = 10240
"""A tar ends on a multiple of so many bytes."""


@dataclass(frozen=True)
class Receipt:
    """What is known of a finished shard, so that it needs neither decoding nor reading again."""

    name: str
    split: str
    fingerprint: str
    """Of the records it was made from, see `Chunk`."""
    bytes: int
    sha256: str
    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Samples by view, by kind of text, ...; see `manifest.tally`."""

    @property
    def file(self) -> str:
        """Name of the tar."""
        return f"{self.name}.tar"


def receipt_path(folder: Path, name: str) -> Path:
    """Where the receipt of shard `name` lies."""
    return folder / RECEIPTS / f"{name}.json"


def save_receipt(folder: Path, receipt: Receipt) -> None:
    """Write a receipt, whole or not at all."""
    with atomic_write(receipt_path(folder, receipt.name)) as file:
        file.write(json.dumps(asdict(receipt), ensure_ascii=False).encode())


def load_receipt(folder: Path, name: str, fingerprint: str) -> Receipt | None:
    """The receipt of a shard that is there, whole and made from the same records; None otherwise."""
    try:
        known: dict[str, Any] = json.loads(receipt_path(folder, name).read_bytes())
        known["rows"] = [
            Row(row["key"], row["subject"], tuple(row["image"]), tuple(row["json"]), row["labels"])
            for row in known["rows"]
        ]
        known["rejects"] = [Reject(**reject) for reject in known["rejects"]]
        receipt = Receipt(**known)
        whole = not receipt.rows or (folder / receipt.file).stat().st_size == receipt.bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if whole and receipt.fingerprint == fingerprint else None


class ShardWriter:
    """One tar in the making, under a temporary name until `finish`."""

    def __init__(self, folder: Path, chunk: Chunk, form: str) -> None:
        self.folder = folder
        self.chunk = chunk
        self.form = form
        self.rows: list[Row] = []
        self.rejects: list[Reject] = []
        self._path = folder / f"{chunk.name}.tar{TEMPORARY}"
        self._hash = hashlib.sha256()
        self._size = 0
        with explained(self._path):
            self._file = open(self._path, "wb")  # noqa: SIM115 - closed by finish or abandon

    def add(self, answer: Rendered | Reject) -> None:
        """Append a sample, or note a reject.

        Raises:
            DataError: the disk is full or cannot be written to.
        """
        if isinstance(answer, Reject):
            self.rejects.append(answer)
            return
        image = self._member(f"{answer.key}.{self.form}", answer.image)
        meta = self._member(f"{answer.key}.json", answer.json)
        self.rows.append(Row(answer.key, answer.subject, image, meta, answer.labels))

    def finish(self, counts: dict[str, dict[str, int]]) -> Receipt:
        """End the tar, bring it to the disk, give it its name, leave a receipt with these counts.

        Raises:
            DataError: as `add`.
        """
        end = self._size + 1024
        self._write(bytes(1024 + -end % RECORD))
        receipt = Receipt(
            name=self.chunk.name,
            split=self.chunk.split,
            fingerprint=self.chunk.fingerprint,
            bytes=self._size,
            sha256=self._hash.hexdigest(),
            rows=self.rows,
            rejects=self.rejects,
            counts=counts,
        )
        with explained(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self.rows:
                os.replace(self._path, self.folder / receipt.file)
            else:
                self._path.unlink()
            sync(self.folder)
            save_receipt(self.folder, receipt)
        return receipt

    def abandon(self) -> None:
        """Leave nothing behind of an unfinished shard; nothing to do for a finished one."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):  # what is still buffered may not fit either
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _member(self, name: str, body: bytes) -> tuple[int, int]:
        """Append one file; returns offset and size of its contents."""
        info = tarfile.TarInfo(name)  # time, user and group are 0 and nobody: the same bytes every time
        info.size = len(body)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._size
        self._write(body)
        self._write(bytes(-len(body) % 512))
        return offset, len(body)

    def _write(self, data: bytes) -> None:
        with explained(self._path):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
