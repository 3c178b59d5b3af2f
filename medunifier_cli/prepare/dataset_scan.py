"""One pass over a plugin's records: each is checked, and they are divided into shards before any is decoded.

Which records make shard k of a split follows from the plan alone. So every number of workers, every restart
and every division into parts writes the same shards; a rejected image makes its shard one sample shorter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medunifier_cli.data.contract import DatasetPlugin, Drop, Record
from medunifier_cli.errors import DataError, MuError, in_code_of, quoted

KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""A dot would end a WebDataset key; 90 characters leave room for the suffix in a USTAR header."""
SPLIT = re.compile(r"[A-Za-z0-9_-]+")
MOST = 3
"""Labels that a message names."""
TRAIN = "train"
"""The split of synthetic images."""


@dataclass(frozen=True)
class Chunk:
    """The records of one shard."""

    name: str
    """`<split>-<nnnnnn>`, without suffix."""
    split: str
    ordinal: int
    """Number of the chunk over all splits, in the order they fill; the parts of a job divide chunks by it."""
    records: tuple[Record, ...]
    fingerprint: str
    """Hash of everything in the records; a receipt with another one is out of date."""


@dataclass
class DatasetScan:
    """One pass over a plan.

    Args:
        shard_size: records per shard.
        shared_subjects: whether a subject may be in two splits.
        on_drop: called with each row the plugin leaves out, in order.
        splits: the names that a split may have; none for any.
        classes: of the data set; each is a label of some record, if records have labels beside them.
    """

    shard_size: int
    shared_subjects: bool
    on_drop: Callable[[Drop], None]
    splits: Sequence[str] = ()
    classes: Sequence[str] = ()
    drops: Counter[str] = field(default_factory=Counter)
    """Number of rows left out by the plugin, by reason."""
    shared: int = 0
    """Number of subjects in more than one split."""
    _labels: dict[str, None] = field(default_factory=dict, init=False)
    """Names of the labels so far, in order."""
    _keys: set[str] = field(default_factory=set, init=False)
    _splits_of: dict[str, int] = field(default_factory=dict, init=False)
    """Subject -> the splits it is in, one bit for each of `_splits`."""
    _splits: list[str] = field(default_factory=list, init=False)

    def chunks(self, items: Iterator[Record | Drop]) -> Iterator[Chunk]:
        """The shards to write, each as soon as it is full; incomplete ones at the end, sorted by split.

        Raises:
            DataError: a bad or repeated key, a bad or unknown split, a subject in two splits, a class that is
                no label of any record while there are labels that are no class.
        """
        buffers: dict[str, list[Record]] = {}
        numbers: Counter[str] = Counter()
        ordinal = 0
        for item in items:
            if isinstance(item, Drop):
                self.drops[item.reason] += 1
                self.on_drop(item)
                continue
            if item.split not in buffers:
                self._check_split(item)
                self._splits.append(item.split)
                buffers[item.split] = []
            self._check(item, items)
            buffer = buffers[item.split]
            buffer.append(item)
            if len(buffer) == self.shard_size:
                yield _chunk(item.split, numbers[item.split], ordinal, buffer)
                numbers[item.split] += 1
                ordinal += 1
                buffer.clear()
        self._check_classes()
        # Sorted, not in the order of the buffers: that order depends on which split the raw data happen to
        # begin with, and the ordinal decides which part of a job array makes a shard.
        for split in sorted(buffers):
            if buffers[split]:
                yield _chunk(split, numbers[split], ordinal, buffers[split])
                ordinal += 1

    def _check_split(self, record: Record) -> None:
        if not SPLIT.fullmatch(record.split):
            raise DataError(
                f"split {record.split!r}: only letters, digits, _ and - are allowed in a file name"
            )
        if self.splits and record.split not in self.splits:
            raise DataError(
                f"{record.source}: split {record.split!r} is none of {', '.join(self.splits)}; the data set "
                "plugin has to name it in `splits`"
            )

    def _check_classes(self) -> None:
        """A misspelt label would leave its class without a sample; more labels than classes are fine."""
        without = [name for name in self.classes if name not in self._labels]
        others = [name for name in self._labels if name not in self.classes]
        if without and others:
            raise DataError(
                f"labels {', '.join(others[:MOST])}: none of the classes; and no record has a label "
                f"{', '.join(without[:MOST])}: the data set plugin has to call label and class alike"
            )

    def _check(self, record: Record, rest: Iterator[Record | Drop]) -> None:
        if not KEY.fullmatch(record.key):
            raise DataError(
                f"{record.source}: key {quoted(record.key)} must be 1 to 90 letters, digits, _ and -; "
                "the data set plugin has to make it so"
            )
        # All keys are kept, 68 MiB with the subjects at the size of MIMIC-CXR (377,110 images): the first
        # repeated key is then reported hours before its shard would be written.
        if record.key in self._keys:
            raise DataError(
                f"{record.source}: key {quoted(record.key)} appears twice; the data set plugin has to make "
                "keys unique"
            )
        self._keys.add(record.key)
        self._labels.update(dict.fromkeys(record.labels))
        if record.origin and record.split != TRAIN:
            raise DataError(
                f"{record.source}: a synthetic image ({quoted(record.origin)}) in {record.split!r}; models "
                f"are measured on real images alone, so put it into {TRAIN}"
            )
        self._check_subject(record, rest)

    def _check_subject(self, record: Record, rest: Iterator[Record | Drop]) -> None:
        bit = 1 << self._splits.index(record.split)
        before = self._splits_of.get(record.subject, 0)
        self._splits_of[record.subject] = before | bit
        if before and not before & bit:
            self.shared += before.bit_count() == 1  # a third split does not count the subject again
            if not self.shared_subjects:
                other = self._splits[before.bit_length() - 1]
                count = self._count_shared(rest)
                raise DataError(
                    f"{record.source}: subject {quoted(record.subject)} is in {record.split!r} and in "
                    f"{other!r}; a patient in two splits inflates every score "
                    f"({count:,} such patient{'s' if count > 1 else ''})"
                )

    def _count_shared(self, rest: Iterator[Record | Drop]) -> int:
        """Number of subjects in more than one split, those of the records to come as well."""
        with contextlib.suppress(MuError):  # there is an error to be told already
            for item in rest:
                if isinstance(item, Record):
                    if item.split not in self._splits:
                        self._splits.append(item.split)
                    bit = 1 << self._splits.index(item.split)
                    self._splits_of[item.subject] = self._splits_of.get(item.subject, 0) | bit
        return sum(bits.bit_count() > 1 for bits in self._splits_of.values())


def _chunk(split: str, number: int, ordinal: int, records: list[Record]) -> Chunk:
    hasher = hashlib.sha256()
    for record in records:
        # The image is hashed by its kind only: its path is in `source`, and reading the file would take as
        # long as decoding it.
        # no origin, as nearly all: shards from before there was one stay what they are
        left_out = ("image",) if record.origin else ("image", "origin")
        facts = {name: value for name, value in vars(record).items() if name not in left_out}
        facts["image"] = type(record.image).__name__
        facts["tone"] = getattr(record.image, "dicom_tone", "")
        hasher.update(json.dumps(facts, sort_keys=True, default=json_value).encode())
    return Chunk(f"{split}-{number:06d}", split, ordinal, tuple(records), hasher.hexdigest())


def json_value(value: object) -> object:
    """Mappings and numpy numbers, which plugins may use, as types that fit JSON; for `json.dumps`."""
    if hasattr(value, "items"):
        return dict(value.items())
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not fit JSON")


def in_plugin(plugin: DatasetPlugin) -> contextlib.AbstractContextManager[None]:
    """While the plugin's code runs: an unforeseen error is laid to its file and line, see `in_code_of`."""
    name = type(plugin).__module__
    package = getattr(sys.modules.get(name.partition(".")[0]), "__path__", ())
    file = getattr(sys.modules.get(name), "__file__", None)
    own = [Path(path) for path in package or filter(None, [file])]
    return in_code_of(f"data set plugin `{plugin.name}`", own)


def records_of(plugin: DatasetPlugin, items: Iterator[Record | Drop]) -> Iterator[Record | Drop]:
    """The items of a plan; unforeseen errors between them are the plugin's, see `in_plugin`."""
    items = iter(items)  # a plugin may give a list
    while True:
        with in_plugin(plugin):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
