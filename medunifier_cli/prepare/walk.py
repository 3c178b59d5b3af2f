"""Walking a plugin's records: each one checked, and cut into shards before anything is decoded.

Which records make shard k of a split follows from the plan alone. So any worker count, any restart and any
division into parts writes the same shards; a rejected image makes its shard one sample shorter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from medunifier_cli.data.contract import Drop, Record
from medunifier_cli.data.shard_scan import digest64
from medunifier_cli.errors import DataError

KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""A dot would end a WebDataset key; 90 characters leave room for the suffix in a USTAR header."""
SPLIT = re.compile(r"[A-Za-z0-9_-]+")
MOST_SPLITS = 16
"""Bits of `CompactMap`."""


@dataclass(frozen=True)
class Chunk:
    """The records of one shard."""

    name: str
    """`<split>-<nnnnnn>`, without suffix."""
    split: str
    ordinal: int
    """Number of the chunk over all splits, in the order they fill; parts share chunks out by it."""
    records: tuple[Record, ...]
    fingerprint: str
    """Hash of all that the records say."""


@dataclass
class Walk:
    """One pass over a plan.

    Args:
        shard_size: records per shard.
        shared_subjects: whether a subject may be in two splits.
        on_drop: called with each row the plugin leaves out, in order.
    """

    shard_size: int
    shared_subjects: bool
    on_drop: Callable[[Drop], None]
    drops: Counter[str] = field(default_factory=Counter)
    """Rows left out by the plugin, by reason."""
    items: int = 0
    """Records and drops seen."""
    records: Counter[str] = field(default_factory=Counter)
    """Records by split."""
    shared: int = 0
    """Subjects that are in more than one split."""

    def chunks(self, items: Iterator[Record | Drop]) -> Iterator[Chunk]:
        """The shards to be, each as soon as it is full; what is left at the end by name of split.

        Raises:
            DataError: a bad or repeated key, a bad split name, a subject in two splits.
        """
        keys, subjects = CompactMap(), CompactMap()
        splits: list[str] = []
        buffers: dict[str, list[Record]] = {}
        numbers: Counter[str] = Counter()
        ordinal = 0
        for item in items:
            self.items += 1
            if isinstance(item, Drop):
                self.drops[item.reason] += 1
                self.on_drop(item)
                continue
            if item.split not in buffers:
                if not SPLIT.fullmatch(item.split):
                    raise DataError(f"split {item.split!r}: only letters, digits, _ and - make a file name")
                if len(splits) == MOST_SPLITS:
                    raise DataError(f"split {item.split!r}: there are {MOST_SPLITS} splits already")
                splits.append(item.split)
                buffers[item.split] = []
            self._check(item, keys, subjects, splits)
            self.records[item.split] += 1
            buffer = buffers[item.split]
            buffer.append(item)
            if len(buffer) == self.shard_size:
                yield _chunk(item.split, numbers[item.split], ordinal, buffer)
                numbers[item.split] += 1
                ordinal += 1
                buffer.clear()
        for split in sorted(buffers):
            if buffers[split]:
                yield _chunk(split, numbers[split], ordinal, buffers[split])
                ordinal += 1

    def _check(self, record: Record, keys: CompactMap, subjects: CompactMap, splits: list[str]) -> None:
        if not KEY.fullmatch(record.key):
            raise DataError(
                f"{record.source}: key {record.key!r} must be 1 to 90 letters, digits, _ and -; "
                "the data set plugin has to make it so"
            )
        if keys.merge(record.key, 1):
            raise DataError(
                f"{record.source}: key {record.key!r} appears twice; the plugin must tell them apart"
            )
        bit = 1 << splits.index(record.split)
        before = subjects.merge(record.subject, bit)
        if before and not before & bit:
            self.shared += before.bit_count() == 1
            if not self.shared_subjects:
                other = splits[before.bit_length() - 1]
                raise DataError(
                    f"{record.source}: subject {record.subject!r} is in {record.split!r} and in {other!r}; "
                    "a patient on both sides makes every score too good"
                )


def _chunk(split: str, number: int, ordinal: int, records: list[Record]) -> Chunk:
    hasher = hashlib.sha256()
    for record in records:
        said = {name: value for name, value in vars(record).items() if name != "image"}
        said["image"] = type(record.image).__name__
        said["tone"] = getattr(record.image, "dicom_tone", "")
        hasher.update(json.dumps(said, sort_keys=True, default=plain).encode())
    return Chunk(f"{split}-{number:06d}", split, ordinal, tuple(records), hasher.hexdigest())


def plain(value: object) -> object:
    """Mappings and numpy numbers, which plugins use too, as JSON has them."""
    if hasattr(value, "items"):
        return dict(value.items())
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not fit JSON")


class CompactMap:
    """String -> bits, 18 bytes per entry or more by the load factor; strings are kept as 64-bit hashes.

    A million keys collide with a probability of 3e-8.
    """

    def __init__(self) -> None:
        self._hashes = np.zeros(1 << 10, np.uint64)
        self._bits = np.zeros(1 << 10, np.uint16)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def merge(self, name: str, bits: int) -> int:
        """Add `bits` (16 of them) to those of `name`; returns what it had before, 0 if it is new."""
        if 2 * self._count >= len(self._hashes):
            self._grow()
        slot = self._slot(digest64(name) or 1)  # 0 marks a free slot
        before = int(self._bits[slot])
        self._count += not before
        self._bits[slot] = before | bits
        return before

    def _slot(self, digest: int) -> int:
        mask = len(self._hashes) - 1
        slot = digest & mask
        while int(self._hashes[slot]) not in (0, digest):
            slot = (slot + 1) & mask
        self._hashes[slot] = digest
        return slot

    def _grow(self) -> None:
        hashes, bits = self._hashes, self._bits
        self._hashes = np.zeros(4 * len(hashes), np.uint64)
        self._bits = np.zeros(4 * len(hashes), np.uint16)
        for place in np.flatnonzero(hashes).tolist():
            self._bits[self._slot(int(hashes[place]))] = bits[place]
