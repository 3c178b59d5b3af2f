"""The index of a split: one row for each sample, with the places of its files and its labels.

`mu prepare` writes it as `<split>.index.npy`, which is memory-mapped; for shards from elsewhere it is made
when they are opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError

Place = tuple[int, int]
"""Offset and size of a file's contents in its tar, in bytes."""
NOWHERE: Place = (0, 0)
BLOCK = 1 << 16
"""Rows that are looked at together, to bound memory."""


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
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def index_dtype(key_bytes: int, labels: int, captions: bool = False) -> np.dtype[Any]:
    """The row of a sample in an index: where its files are, and what a loader needs of its metadata.

    Offsets and sizes are in bytes and refer to the contents, past the tar header; a size of 0 is an absent
    file. `subject` is a 64-bit hash; `labels` holds NaN where a label is blank.

    Args:
        captions: add the place of `<key>.txt`. `mu prepare` writes none.
    """
    text = [("text_offset", "<u8"), ("text_size", "<u4")] if captions else []
    # Byte order is spelled out, since an index may be read on another machine than it was written on.
    return np.dtype(
        [
            ("key", f"S{max(key_bytes, 1)}"),
            ("subject", "<u8"),
            ("shard", "<u4"),
            ("image_offset", "<u8"),
            ("image_size", "<u4"),
            ("json_offset", "<u8"),
            ("json_size", "<u4"),
            *text,
            ("labels", "<f4", (labels,)),
        ]
    )


def fill_index(out: NDArray[Any], rows: Sequence[IndexRow], shard: int, names: Sequence[str]) -> None:
    """Write the rows of one shard into `out`, a slice of an index whose `labels` are named `names`."""
    for slot, row in zip(out, rows, strict=True):
        slot["key"] = row.key.encode()
        slot["subject"] = digest64(row.subject)
        slot["shard"] = shard
        slot["image_offset"], slot["image_size"] = row.image
        slot["json_offset"], slot["json_size"] = row.json
        if "text_size" in (out.dtype.names or ()):
            slot["text_offset"], slot["text_size"] = row.text
        slot["labels"] = [np.nan if (value := row.labels.get(name)) is None else value for name in names]


def map_index(path: Path, labels: int, shard_bytes: Sequence[int], advice: str) -> NDArray[Any]:
    """Memory-map an index that `mu prepare` wrote.

    Args:
        labels: number of label columns that the manifest names.
        shard_bytes: size of each shard that a row may point into.
        advice: ends the message.

    Raises:
        DataError: it is no index of this kind, or a row points outside of its shard.
    """
    try:
        index: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python code: damage ends in errors of all kinds
        raise DataError(f"{path}: not an index of shards; {advice}") from error
    key_bytes = index.dtype["key"].itemsize if "key" in (index.dtype.names or ()) else 0
    if index.ndim != 1 or index.dtype != index_dtype(key_bytes, labels):
        raise DataError(f"{path}: its columns are not those of an index with {labels} labels; {advice}")
    sizes = np.array(shard_bytes, np.uint64)
    for start in range(0, len(index), BLOCK):
        rows = index[start : start + BLOCK]
        if rows["shard"].max() >= len(sizes):
            raise DataError(f"{path}: names a shard that the manifest does not list; {advice}")
        within = sizes[rows["shard"]]
        for part in ("image", "json"):
            # compared without adding them up, which could exceed 64 bits
            size, offset = rows[f"{part}_size"], rows[f"{part}_offset"]
            if ((size > within) | (offset > within - np.minimum(size, within))).any():
                raise DataError(f"{path}: points outside of a shard; {advice}")
    return index
