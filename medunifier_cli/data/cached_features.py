"""Cached features of a frozen image encoder: rows of a split in bf16, in files of which every row is checked.

`mu prepare --features` writes two kinds of files into a folder: `<split>.json`, which says what the features
depend on, and `<split>-<nnnnnn>.features`, consecutive rows of the split end to end, then a CRC-32 of each
row, and a SHA-256 of these and of all that the features depend on. A file is there whole or not at all.

Letters: n samples of a split, B of a batch, V tokens of an image, D width of the encoder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.data.disk.manifest import Digest
from medunifier_cli.errors import DataError
from medunifier_cli.files import atomic_write, write_json
from medunifier_cli.parsing import read_json

FILE_BYTES, FILE_ROWS = 1 << 27, 1024
"""Most bytes and rows of a file: what a kill may cost, and still few files. Part of the format."""
VERIFIED = 64
"""Rows that are verified at a time."""
OPEN_FILES = 256
"""Most files that a process keeps open, as of shards."""
NUMBER_BYTES, SEAL_BYTES = 2, 32
VERSION = 1
"""Of the format; part of what is hashed."""
AGAIN = "delete it and run `mu prepare --features RECIPE` again, which computes what is missing"
OTHERWISE = "set data.features=live"

Whole = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


@dataclasses.dataclass(frozen=True)
class FeatureFacts:
    """All that the features of a split depend on, but for rounding."""

    encoder: Digest
    """SHA-256 of the encoder's weights."""
    name: str
    """Of its architecture in timm."""
    heads: int
    """`model.vit.heads`, which no weight tells."""
    pixel_norm: str
    """`model.vit.pixel_norm`."""
    image_size: Whole
    """Edge of the images in pixels."""
    tokens: Whole
    width: Whole
    shards: Digest
    """Fingerprint of the split's shards."""
    samples: Whole

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of an image."""
        return NUMBER_BYTES * self.tokens * self.width

    @property
    def file_rows(self) -> int:
        """Rows of each file but the last."""
        return max(1, min(FILE_ROWS, FILE_BYTES // self.row_bytes))

    @property
    def files(self) -> int:
        """Number of files."""
        return -(-self.samples // self.file_rows)

    def rows_of(self, number: int) -> range:
        """Rows of a file."""
        start = number * self.file_rows
        return range(start, min(start + self.file_rows, self.samples))

    def bytes_of(self, number: int) -> int:
        """Size of a file."""
        return len(self.rows_of(number)) * (self.row_bytes + 4) + SEAL_BYTES

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return self.samples * (self.row_bytes + 4) + self.files * SEAL_BYTES

    def seal(self, number: int, crc: NDArray[np.uint32]) -> bytes:
        """The last bytes of a file: no other features, and no other file of these, have them."""
        text = json.dumps([VERSION, dataclasses.asdict(self), number], sort_keys=True)
        return hashlib.sha256(text.encode() + crc.astype("<u4").tobytes()).digest()


def features_path(folder: Path, split: str, number: int) -> Path:
    """One file of the features of a split."""
    return folder / f"{split}-{number:06d}.features"


def facts_path(folder: Path, split: str) -> Path:
    """The file that says what the features of a split depend on."""
    return folder / f"{split}.json"


def write_facts(folder: Path, split: str, facts: FeatureFacts) -> None:
    """Write what the features depend on, before any of them; refuse a folder that holds others.

    Raises:
        DataError: there are others, or the disk cannot be written to.
    """
    path = facts_path(folder, split)
    if path.exists():
        check_facts(path, read_facts(path), dataclasses.asdict(facts), "give another folder with --out")
    else:
        write_json(path, {"version": VERSION, **dataclasses.asdict(facts)})


def read_facts(path: Path) -> FeatureFacts:
    """What the features of a split depend on.

    Raises:
        DataError: the file is missing or damaged.
    """
    advice = AGAIN if path.exists() else "run `mu prepare --features RECIPE`, or set data.features=live"
    return read_json(path, FeatureFacts, DataError, advice)


def check_facts(path: Path, facts: FeatureFacts, wanted: Mapping[str, Any], otherwise: str) -> None:
    """Refuse features of something else.

    Args:
        path: of the file that the facts are from.
        wanted: fields of `FeatureFacts` that must be equal.
        otherwise: what else the user can do than to delete them; ends the message.

    Raises:
        DataError: one is not.
    """
    there = dataclasses.asdict(facts)
    differing = [name for name, value in wanted.items() if there[name] != value]
    if not differing:
        return
    if {"shards", "samples"} & set(differing):
        what = f"of other shards (of {facts.samples:,} samples): the split was prepared anew since"
    elif "image_size" in differing:
        what = f"of images of {facts.image_size} pixels, not of {wanted['image_size']}"
    else:
        weights = f"{facts.name}, weights {facts.encoder[:8]}"
        names = " and ".join(f"{name} {there[name]}, not {wanted[name]}" for name in differing[:2])
        what = f"of another image encoder ({weights})" if "encoder" in differing else f"of {names}"
    raise DataError(
        f"{path}: features {what}; delete that folder and run `mu prepare --features RECIPE` again, or "
        f"{otherwise}"
    )


def write_features(
    folder: Path, split: str, facts: FeatureFacts, number: int, blocks: Iterator[Tensor]
) -> None:
    """Write one file, which replaces an earlier one only once all of it is on disk.

    Args:
        blocks: bf16 [k, V, D] on the CPU, consecutive rows; together those of the file.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    crc: list[int] = []
    with atomic_write(features_path(folder, split, number)) as file:
        for block in blocks:
            rows = bytes_of_rows(block)
            crc += [zlib.crc32(row) for row in rows]
            file.write(rows.data)
        assert len(crc) == len(facts.rows_of(number))
        sums = np.array(crc, np.uint32)
        file.write(sums.astype("<u4").tobytes() + facts.seal(number, sums))


def check_file(folder: Path, split: str, facts: FeatureFacts, number: int) -> None:
    """Check that a file is whole and of these features, by its size and its last bytes.

    Raises:
        DataError: it is missing, truncated, damaged, or of other features.
    """
    _sums(folder, split, facts, number)


def bytes_of_rows(feature_BVD: Tensor) -> NDArray[np.uint8]:
    """The bytes of bf16 features, [B, 2 V D], in the same memory; little-endian."""
    rows: NDArray[np.uint8] = feature_BVD.flatten(1).view(torch.uint8).numpy()
    return rows


class SplitFeatures:
    """The features of a split, read by offset. Picklable; safe to share between threads and forked processes.

    Args:
        folder: of the cache.
        split: name of the split.
        wanted: what must hold of them, as fields of `FeatureFacts`.

    Raises:
        DataError: they are missing, truncated, or of something else.
    """

    def __init__(self, folder: Path, split: str, wanted: Mapping[str, Any]) -> None:
        self.folder, self.split = folder, split
        path = facts_path(folder, split)
        self.facts = read_facts(path)
        check_facts(path, self.facts, wanted, OTHERWISE)
        # of all rows at once, in the first process: a file that is cut short is found before training begins
        sums = [_sums(folder, split, self.facts, number) for number in range(self.facts.files)]
        self.crc_n: NDArray[np.uint32] = np.concatenate(sums)
        self._open: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return self.facts.samples

    def empty(self, count: int) -> Tensor:
        """An uninitialised tensor for the features of `count` samples, bf16 [count, V, D]."""
        return torch.empty((count, self.facts.tokens, self.facts.width), dtype=torch.bfloat16)

    def verify(self) -> None:
        """Read all features and compare them with their checksums.

        Raises:
            DataError: as `read`.
        """
        for start in range(0, len(self), VERIFIED):
            rows = np.arange(start, min(start + VERIFIED, len(self)))
            self.read(rows, self.empty(len(rows)))

    def read(self, rows: NDArray[np.int64], feature_BVD: Tensor) -> None:
        """Read the features of these rows of the split into `feature_BVD`, and verify each.

        Raises:
            DataError: a file is missing, truncated or damaged.
        """
        for row, room in zip(rows.tolist(), bytes_of_rows(feature_BVD), strict=True):
            number, place = divmod(row, self.facts.file_rows)
            path = features_path(self.folder, self.split, number)
            try:
                # not seek and read, as with shards: forked processes share the position of a file
                got = os.preadv(self._file(number, path), [room.data], place * self.facts.row_bytes)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
            if got != self.facts.row_bytes or zlib.crc32(room) != int(self.crc_n[row]):
                raise DataError(f"{path}: damaged in row {place:,}; {AGAIN}")

    def _file(self, number: int, path: Path) -> int:
        if number not in self._open:
            while len(self._open) >= OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[number]

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_open"):  # missing if __init__ itself failed
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # descriptors are numbers of this process


def _sums(folder: Path, split: str, facts: FeatureFacts, number: int) -> NDArray[np.uint32]:
    """The checksums of the rows of a file, which is there."""
    path = features_path(folder, split, number)
    count, expected = len(facts.rows_of(number)), facts.bytes_of(number)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected:
                raise DataError(
                    f"{path}: {size:,} bytes, {expected:,} expected: truncated or changed; {AGAIN}"
                )
            file.seek(count * facts.row_bytes)
            end = file.read()
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; run `mu prepare --features RECIPE` again, which computes what is missing"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    sums = np.frombuffer(end[:-SEAL_BYTES], "<u4").astype(np.uint32)
    if len(sums) != count or facts.seal(number, sums) != end[-SEAL_BYTES:]:
        raise DataError(f"{path}: damaged, or of other features than {split}.json says; {AGAIN}")
    return sums
