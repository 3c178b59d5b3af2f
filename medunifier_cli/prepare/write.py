"""Write shards: each is complete or absent, and the same records give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, TypedDict, cast

import msgspec

from medunifier_cli.data.disk.index import IndexRow
from medunifier_cli.data.disk.manifest import Digest
from medunifier_cli.data.images.image import bytes_of
from medunifier_cli.errors import DataError
from medunifier_cli.files import atomic_write, create_file, explained, sha256, sync
from medunifier_cli.parsing import Count, read_json
from medunifier_cli.prepare.dataset_scan import KEY, Chunk
from medunifier_cli.prepare.folder import receipt_path, shard_path
from medunifier_cli.prepare.render import Reject, RenderedSample
from medunifier_cli.temporary import temporary_name

RECORD = 10240
"""Bytes; the length of a tar is a multiple of this."""


_ByPart = dict[str, dict[str, int]]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
"""Bytes of a file in a shard: the index has 32 bits for it."""


class SavedRow(TypedDict):
    """A row of the index."""

    key: Annotated[str, msgspec.Meta(pattern=rf"^{KEY.pattern}\Z")]
    subject: str
    image: tuple[Count, Size]
    json: tuple[Count, Size]
    labels: dict[str, float | bool | None]
    """A plugin may well have given True for 1."""


class SavedRescaled(TypedDict):
    """A sample whose levels were not believed."""

    source: str
    key: str
    detail: str


class _SavedCounts(TypedDict):
    views: dict[str, Count]
    text_kinds: dict[str, Count]
    sections: dict[str, Count]
    text: dict[str, Count]


class SavedCounts(_SavedCounts, total=False):
    """What `manifest.tally` counted."""

    origins: dict[str, Count]


class _SavedReceipt(TypedDict):
    name: str
    split: str
    fingerprint: str
    bytes: Count
    sha256: Digest
    rows: list[SavedRow]
    rejects: list[Reject]
    counts: SavedCounts


@dataclass(frozen=True)
class Receipt:
    """What is known about a finished shard, so that it is neither decoded nor read again.

    The file on disk also holds the index rows of the shard. They are not kept in memory, see `load_rows`: a
    data set of any size then takes the memory of one shard.
    """

    name: str
    split: str
    fingerprint: str
    """Hash of the records it was made from, see `Chunk`."""
    bytes: int
    """Size of the tar."""
    sha256: str
    rejects: list[Reject]
    counts: dict[str, dict[str, int]]
    """Number of samples by view, by kind of text, ...; see `manifest.tally`."""
    samples: int
    key_bytes: int
    """Length of the longest key."""
    labels: tuple[str, ...]
    """Names of all labels in the shard, in the order they appear."""
    rescaled: list[dict[str, str]] = field(default_factory=list)
    """Samples whose levels were not believed: `source`, `key` and `detail`. Older receipts have none."""
    images: str = ""
    """Hash of the sizes of the image files, see `sizes_of`. Older receipts have none."""

    @property
    def file(self) -> str:
        """Name of the tar."""
        return f"{self.name}.tar"


class SavedReceipt(_SavedReceipt, total=False):
    """A receipt on disk."""

    rescaled: list[SavedRescaled]
    images: str


def load_receipt(folder: Path, name: str, fingerprint: str) -> Receipt | None:
    """The receipt of a shard that is complete and made from the same records; None for any other.

    Complete is judged by its size alone, see `is_intact`.
    """
    try:
        saved = read_json(receipt_path(folder, name), SavedReceipt)
        size = (folder / f"{name}.tar").stat().st_size if saved["rows"] else saved["bytes"]
    except (OSError, DataError):
        return None  # absent, torn or of another version: the shard is made again
    if (size, saved["name"], saved["fingerprint"]) != (saved["bytes"], name, fingerprint):
        return None
    return Receipt(
        name=name,
        split=saved["split"],
        fingerprint=fingerprint,
        bytes=saved["bytes"],
        sha256=saved["sha256"],
        rejects=saved["rejects"],
        counts={part: dict(counts) for part, counts in cast("_ByPart", saved["counts"]).items()},
        samples=len(saved["rows"]),
        key_bytes=max((len(row["key"]) for row in saved["rows"]), default=0),
        labels=tuple(dict.fromkeys(label for row in saved["rows"] for label in row["labels"])),
        rescaled=[dict(cast("dict[str, str]", one)) for one in saved.get("rescaled", [])],
        images=saved.get("images", ""),
    )


def is_intact(folder: Path, receipt: Receipt) -> bool:
    """Whether the contents of a finished shard are those that were written; reads all of it."""
    try:
        return not receipt.samples or sha256(folder / receipt.file) == receipt.sha256
    except OSError:  # a damaged disk
        return False


def sizes_of(chunk: Chunk) -> str:
    """Hash of the sizes in bytes of a chunk's image files.

    Not of their times, which differ between the copies of a download that the parts of a job array may read.
    """
    sizes = [bytes_of(record.image) for record in chunk.records]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]


def is_of_these_images(receipt: Receipt, chunk: Chunk) -> bool:
    """Whether the image files have the sizes that they had when the shard was made.

    They have others after a second download, or with another folder of raw data.
    """
    if receipt.images:
        return receipt.images == sizes_of(chunk)
    images = {record.key: record.image for record in chunk.records}
    return all(bytes_of(images[reject.key]) == reject.bytes for reject in receipt.rejects)


def load_rows(folder: Path, receipt: Receipt) -> list[IndexRow]:
    """The index rows of a shard, from its receipt on disk.

    Raises:
        DataError: another call has replaced or deleted the receipt.
    """
    try:
        saved = read_json(receipt_path(folder, receipt.name), SavedReceipt)
        if saved["sha256"] != receipt.sha256 or len(saved["rows"]) != receipt.samples:
            raise DataError("another shard")
    except DataError as error:
        raise DataError(
            f"{folder / receipt.file}: changed while the index was written; run the same command again"
        ) from error
    return [
        IndexRow(row["key"], row["subject"], row["image"], row["json"], row["labels"])
        for row in saved["rows"]
    ]


class ShardWriter:
    """A tar being written, under a temporary name until `finish`."""

    def __init__(self, folder: Path, chunk: Chunk, form: str) -> None:
        self.folder = folder
        self.chunk = chunk
        self._images = sizes_of(chunk)  # before any is decoded: one that changes meanwhile is made again
        self.form = form
        self.rows: list[IndexRow] = []
        self.rejects: list[Reject] = []
        self.rescaled: list[dict[str, str]] = []
        self._final = shard_path(folder, chunk.name)
        self._path = temporary_name(self._final)
        self._hash = hashlib.sha256()
        self._size = 0
        with explained(self._final):
            self._file = create_file(self._path)  # closed by finish or abandon

    def add(self, rendered: RenderedSample | Reject) -> None:
        """Append a sample, or note a reject.

        Raises:
            DataError: the disk is full or cannot be written to.
        """
        if isinstance(rendered, Reject):
            self.rejects.append(rendered)
            return
        if rendered.doubt:
            self.rescaled.append({"source": rendered.source, "key": rendered.key, "detail": rendered.doubt})
        image = self._member(f"{rendered.key}.{self.form}", rendered.image)
        meta = self._member(f"{rendered.key}.json", rendered.json)
        self.rows.append(IndexRow(rendered.key, rendered.subject, image, meta, rendered.labels))

    def finish(self, counts: dict[str, dict[str, int]]) -> None:
        """End the tar, sync it to the disk, give it its final name, and write its receipt.

        Args:
            counts: of the samples written, see `manifest.tally`.

        Raises:
            DataError: as `add`.
        """
        end = self._size + 1024
        self._write(bytes(1024 + -end % RECORD))
        with explained(self._final):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self.rows:
                os.replace(self._path, self._final)
            else:
                self._path.unlink()
            # The order matters: a receipt that reached the disk before its shard would, after a power cut,
            # vouch for a file that is not there.
            sync(self.folder)
            self._write_receipt(counts)

    def _write_receipt(self, counts: dict[str, dict[str, int]]) -> None:
        receipt = {
            "name": self.chunk.name,
            "split": self.chunk.split,
            "fingerprint": self.chunk.fingerprint,
            "bytes": self._size,
            "sha256": self._hash.hexdigest(),
            "rows": [asdict(row) for row in self.rows],
            "rejects": [asdict(reject) for reject in self.rejects],
            "counts": counts,
            "rescaled": self.rescaled,
            "images": self._images,
        }
        with atomic_write(receipt_path(self.folder, self.chunk.name)) as file:
            file.write(json.dumps(receipt, ensure_ascii=False).encode(errors="replace"))

    def abandon(self) -> None:
        """Delete an unfinished shard; does nothing after `finish`."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):  # on a full disk, flushing the buffer fails as well
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _member(self, name: str, body: bytes) -> tuple[int, int]:
        """Append one file; returns offset and size of its contents in bytes."""
        # A new TarInfo has time, user and group 0, so that the bytes do not depend on when and by whom.
        info = tarfile.TarInfo(name)
        info.size = len(body)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._size
        self._write(body)
        self._write(bytes(-len(body) % 512))
        return offset, len(body)

    def _write(self, data: bytes) -> None:
        with explained(self._final):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
