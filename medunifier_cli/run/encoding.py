"""Encode many images in a way that survives a kill: rows go to disk as they come, and the next call resumes.

The rows so far are next to the file that they become, in a folder `<file>.<hash>.rows` of small caches. Its
name holds a hash of all that the rows depend on, so that rows of another checkpoint or of other data never
mix with them. Rows are those of whole batches, which are always the same ones: the file of a resumed encoding
equals that of an undisturbed one bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from medunifier_cli.errors import DataError, MuError, Stopped
from medunifier_cli.files import make_folder
from medunifier_cli.run.cache import (
    Arrays,
    MadeOf,
    is_cached,
    made_of_text,
    open_hdf5,
    read_cache,
    write_cache,
    write_hdf5,
    write_if_possible,
)
from medunifier_cli.temporary import old_folders
from medunifier_cli.terminal.say import say

KEEP_SECONDS = 30.0
"""Longest time between two writes of rows to disk, and so what a kill may cost."""
KEEP_BYTES = 1 << 28
"""Most bytes of unwritten rows kept in memory."""
NAME = re.compile(r"rows-(\d{9})-(\d{9})\.h5")

Batches = Generator[Arrays, None, None]
"""Columns of consecutive rows, batch by batch."""
Encode = Callable[[int], Batches]
"""Number of the first row -> the rows from there on."""


class _Gone(Exception):
    """Another process has finished the same encoding and removed its rows."""


class Rows:
    """The rows of an encoding, from the first one on without a gap.

    Args:
        path: of the file that they will become; its folder is made when there is something to write.
        made_of: everything they depend on.
        total: how many rows there will be.
        in_memory: keep all rows in memory too. Then a folder that cannot be written to costs only what a
            kill would; otherwise it is an error.

    Attributes:
        done: number of rows that are there.
    """

    def __init__(self, path: Path, made_of: MadeOf, total: int, in_memory: bool = True) -> None:
        text = made_of_text(made_of)
        self.path, self.made_of, self.total, self.in_memory = path, text, total, in_memory
        self.folder = path.with_name(f"{path.name}.{hashlib.sha256(text.encode()).hexdigest()[:12]}.rows")
        self.done = 0
        self._parts: list[Path | Arrays] = []
        self._new: list[Arrays] = []
        self._since, self._can_keep = time.monotonic(), True
        self._find()
        if self.done:
            say(f"{path}: {self.done:,} of {total:,} images were encoded before")

    def add(self, rows: Arrays) -> None:
        """Add the rows of one batch.

        Raises:
            DataError: they cannot be written, and are not kept in memory.
        """
        self._new.append(rows)
        size = sum(column.nbytes for part in self._new for column in part.values())
        if time.monotonic() - self._since >= KEEP_SECONDS or size >= KEEP_BYTES:
            self.keep()

    def fill(self, batches: Batches) -> None:
        """Add the rows of all batches; those that are there when a signal comes are kept.

        Raises:
            DataError: as `add`.
        """
        try:
            for rows in batches:
                self.add(rows)
        except (KeyboardInterrupt, Stopped):
            with contextlib.suppress(MuError):
                self.keep()
            raise
        finally:
            batches.close()  # ends the processes that load images, now and not when it is collected

    def keep(self) -> None:
        """Write the rows to disk that are not there yet.

        Raises:
            DataError: they cannot be written, and are not kept in memory.
        """
        if not self._new:
            return
        rows = _joined(self._new)
        stop = self.done + len(next(iter(rows.values())))
        path = self.folder / f"rows-{self.done:09d}-{stop:09d}.h5"
        try:
            if self._can_keep:
                write_cache(path, f"{self.made_of} rows {self.done} to {stop}", rows)
        except MuError as error:
            # with its file, another process may have taken away the folder that was just written to
            if not self.in_memory and is_cached(self.path, self.made_of):
                raise _Gone from None
            if not self.in_memory:
                raise
            self._can_keep = False
            say(f"not kept, a call that is interrupted computes it again: {error}")
        self._parts.append(rows if self.in_memory else path)
        self.done, self._new, self._since = stop, [], time.monotonic()

    def blocks(self) -> Iterator[Arrays]:
        """All rows in order, some at a time."""
        for part in (*self._parts, *self._new):
            rows = self._read(part) if isinstance(part, Path) else part
            if rows is None:
                raise _Gone
            yield rows

    def arrays(self) -> Arrays:
        """All rows."""
        return _joined(list(self.blocks()))

    def remove(self) -> None:
        """Delete the rows on disk, once the file is there; and rows of other encodings that were given up."""
        # not only those of this encoding: after a new training nobody would ever ask for the others
        for folder in (self.folder, *old_folders(self.path.parent, f"{self.path.name}.*.rows")):
            shutil.rmtree(folder, ignore_errors=True)

    def _find(self) -> None:
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        spans = sorted((int(m[1]), int(m[2])) for name in names if (m := NAME.fullmatch(name)))
        for start, stop in _chain(spans, self.total):
            path = self.folder / f"rows-{start:09d}-{stop:09d}.h5"
            rows = self._read(path)
            if rows is None:
                break
            self._parts.append(rows if self.in_memory else path)
            self.done = stop

    def _read(self, path: Path) -> Arrays | None:
        match = NAME.fullmatch(path.name)
        assert match is not None  # `_find` and `keep` name no other
        return read_cache(path, f"{self.made_of} rows {int(match[1])} to {int(match[2])}")


def encoded(path: Path, made_of: MadeOf, total: int, encode: Encode) -> Arrays:
    """The columns of a cache file, encoded and written first if it does not hold them.

    A folder that cannot be written to costs time, not the run, as with `cache.cached`.

    Args:
        path: of the file; its folder is created.
        made_of: compared with what the file says.
        total: number of rows.
        encode: called with the number of the first row that is missing; see `Encode`.
    """
    found = read_cache(path, made_of)
    if found is not None:
        return found
    rows = Rows(path, made_of, total)
    rows.fill(encode(rows.done))
    arrays = rows.arrays()
    write_if_possible(path, made_of, arrays)
    rows.remove()
    return arrays


def encoded_file(path: Path, made_of: MadeOf, total: int, encode: Encode) -> Path:
    """As `encoded`, for rows that do not fit into memory, or that several processes map from the file.

    For the moment in which the rows become the file, they need twice their room on the disk.

    Returns:
        The path.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    make_folder(path.parent)
    while not is_cached(path, made_of):
        rows = Rows(path, made_of, total, in_memory=False)
        with contextlib.suppress(_Gone):  # the file of the other process is there, and is looked at next
            rows.fill(encode(rows.done))
            write_hdf5(path, made_of, partial(_write_all, rows))
        rows.remove()
    return path


def encoded_mapped(path: Path, made_of: MadeOf, total: int, encode: Encode, large: str) -> Arrays:
    """As `encoded`, but with one column left in the file and mapped, for those that do not fit into memory.

    Where the file cannot be written all columns are in memory, as with `encoded`.

    Args:
        path, made_of, total, encode: as for `encoded`.
        large: name of the column.
    """
    failed: list[DataError] = []

    def watched(first: int) -> Batches:
        try:
            yield from encode(first)
        except DataError as error:
            failed.append(error)
            raise

    try:
        encoded_file(path, made_of, total, watched)
        with open_hdf5(path) as file:
            arrays = {name: data[()] for name, data in file.items() if name != large}
            data = file[large]
            arrays[large] = np.memmap(path, data.dtype, "r", data.id.get_offset(), data.shape)
            return arrays
    except DataError as error:
        if error in failed:  # of what is encoded, and not of the disk
            raise
        say(f"all in memory, since it cannot be kept: {error}")
        return encoded(path, made_of, total, encode)


def _write_all(rows: Rows, file: h5py.File) -> None:
    start = 0
    for some in rows.blocks():
        for name, column in sorted(some.items()):
            if not start:
                # one piece, not chunks: it is mapped into memory as it lies in the file
                file.create_dataset(name, (rows.total, *column.shape[1:]), column.dtype)
            assert file[name].dtype == column.dtype, "HDF5 would cut longer texts without a word"
            file[name][start : start + len(column)] = column
        start += len(column)
    if start != rows.total:
        raise DataError(f"{rows.path}: {start:,} of {rows.total:,} rows; run the same command again")


def _chain(spans: list[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """Spans that follow each other from row 0 on: two processes may have left overlapping ones."""
    chain: list[tuple[int, int]] = []
    done = 0
    while nexts := [span for span in spans if span[0] == done < span[1] <= total]:
        chain.append(max(nexts))
        done = chain[-1][1]
    return chain


def _joined(parts: list[Arrays]) -> Arrays:
    # sorted: in the order of the file, be they read from one or not
    names = sorted(parts[0]) if parts else []
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
