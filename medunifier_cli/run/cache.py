"""Cache arrays on disk: an HDF5 file that knows what it was made of and is made again if that has changed.

A cache may be deleted at any time and never decides a result. Its contents are hashed when it is written and
again when it is read. A file that is damaged, or does not say what it was made of, is reported on stderr and
made again; a file made of something else (another checkpoint, other data) is replaced without a word, because
that is what happens after every training.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError, MuError
from medunifier_cli.files import atomic_write, make_folder
from medunifier_cli.temporary import sweep
from medunifier_cli.terminal.say import say

Arrays = dict[str, NDArray[Any]]
"""Name of a data set in the file -> its values."""
MadeOf = str | Mapping[str, Any]
"""Everything the values depend on: checkpoint, data, settings. A mapping has to fit JSON."""
ATTRIBUTE, HASH = "made_of", "sha256"
"""Attributes of the file: what it was made of, and the hash of that and of all its data sets."""
BLOCK = 1 << 24
"""Bytes that are hashed at a time."""
UNREADABLE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
"""All that HDF5 and numpy raise on a damaged file."""


class Damaged(ValueError):
    """Why a file is not what was written; ends a sentence that begins with its name."""


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file to read it, without HDF5's own lock, which fails where the file system has none.

    Ours need no lock: a file is written under a temporary name by one process, and not changed after that.
    """
    return h5py.File(path, "r", locking=False)


def cached(
    path: Path, made_of: MadeOf, make: Callable[[], Mapping[str, NDArray[Any]]], texts_of: Path | None = None
) -> Arrays:
    """The arrays of a cache file, computed and written first if it does not hold them.

    A folder that cannot be written to costs time, not the run: the arrays are returned all the same.

    Args:
        path: of the file; its folder is created.
        made_of: compared with what the file says.
        make: computes the arrays.
        texts_of: data whose texts the arrays hold, see `files.atomic_write`.
    """
    found = read_cache(path, made_of)
    if found is not None:
        return found
    arrays = {name: np.asarray(values) for name, values in make().items()}
    write_if_possible(path, made_of, arrays, texts_of)
    return arrays


def write_if_possible(path: Path, made_of: MadeOf, arrays: Arrays, texts_of: Path | None = None) -> None:
    """Write a cache file; a failure is reported and does not end the run."""
    try:
        write_cache(path, made_of, arrays, texts_of)
    except MuError as error:
        say(f"not cached, the next call computes it again: {error}")


def read_cache(path: Path, made_of: MadeOf) -> Arrays | None:
    """The arrays of a cache file, verified; None if it does not hold what is asked for.

    Warns about a file that is damaged or no cache of ours.
    """
    return _read(path, made_of, lambda file: {name: data[()] for name, data in _datasets(file)})


def is_cached(path: Path, made_of: MadeOf) -> bool:
    """Whether a file holds what is asked for, all of it verified; warns as `read_cache`."""
    return _read(path, made_of, lambda file: dict(_datasets(file))) is not None


def write_cache(
    path: Path, made_of: MadeOf, arrays: Mapping[str, NDArray[Any]], texts_of: Path | None = None
) -> None:
    """Write arrays to a cache file; its folder is created.

    Raises:
        DataError: the disk is full or cannot be written to.
    """

    def fill(file: h5py.File) -> None:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)

    write_hdf5(path, made_of, fill, texts_of=texts_of)


def write_hdf5(
    path: Path, made_of: MadeOf, fill: Callable[[h5py.File], object], error: type[MuError] = DataError,
    texts_of: Path | None = None,
) -> None:  # fmt: skip
    """Write an HDF5 file atomically, read it back and compare; its folder is created.

    Args:
        path: of the file.
        made_of: what it is made of.
        fill: writes groups and data sets into the open file.
        error: type of the error that a failed write raises.
        texts_of: data whose texts it holds, see `files.atomic_write`.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to.
    """
    make_folder(path.parent, error)
    sweep(path.parent)
    with atomic_write(path, error, texts_of) as plain:
        shielded = _Shielded(plain)
        try:
            with h5py.File(shielded, "w") as file:
                fill(file)
                file.attrs[ATTRIBUTE] = made_of_text(made_of)
                written = _contents_hash(file, _datasets(file))
                # Last: a file without it is never taken for whole.
                file.attrs[HASH] = written
        except UNREADABLE as failure:
            if shielded.failure is None:
                raise
            raise shielded.failure from failure
        if shielded.failure:
            raise shielded.failure
        plain.flush()
        with h5py.File(plain, "r") as file:
            if _contents_hash(file, _datasets(file)) != written:
                raise error(f"{path}: the disk did not keep what was written; check it, and run again")


def verify(file: h5py.File, items: Iterable[tuple[str, Any]] | None = None) -> None:
    """Compare the contents of an open file with its hash.

    Args:
        file: the file.
        items: its data sets by name, if they have been read already.

    Raises:
        Damaged: they are not those that were written.
    """
    saved = file.attrs.get(HASH)
    if saved is None:
        raise Damaged("has no hash of its contents")
    if saved != _contents_hash(file, _datasets(file) if items is None else items):
        raise Damaged("is damaged")


class _Shielded:
    """A file for HDF5 that keeps the first error to itself, as its own code must not see any.

    On a full disk HDF5 loses the rows it still holds, without an error, or brings the process down.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.failure: OSError | None = None

    def _call(self, method: str, *arguments: Any, otherwise: Any = 0) -> Any:
        if self.failure is None:
            try:
                return getattr(self._file, method)(*arguments)
            except OSError as error:
                self.failure = error
        return otherwise

    def write(self, data: Any) -> Any:
        return self._call("write", data, otherwise=len(data))

    def read(self, *size: int) -> Any:
        return self._call("read", *size, otherwise=b"")

    def readinto(self, buffer: Any) -> Any:
        return self._call("readinto", buffer)

    def seek(self, *place: int) -> Any:
        return self._call("seek", *place)

    def tell(self) -> Any:
        return self._call("tell")

    def truncate(self, *size: int) -> Any:
        return self._call("truncate", *size)

    def flush(self) -> Any:
        return self._call("flush")


def _read(
    path: Path, made_of: MadeOf, read: Callable[[h5py.File], Mapping[str, NDArray[Any]]]
) -> Arrays | None:
    if not path.exists():
        return None
    try:
        with open_hdf5(path) as file:
            if ATTRIBUTE not in file.attrs:
                raise Damaged("does not say what it was made of")
            if file.attrs[ATTRIBUTE] != made_of_text(made_of):
                return None
            check_sizes(file, path.stat().st_size)
            arrays = dict(read(file))
            verify(file, sorted(arrays.items()) or None)
            return arrays
    except Damaged as error:
        say(f"{path}: {error}; computing it again")
    except UNREADABLE:
        say(f"{path}: is damaged; computing it again")
    return None


def check_sizes(group: h5py.Group, size: int) -> None:
    """Refuse data sets larger than their file, of `size` bytes: one could ask for any amount of memory.

    Raises:
        Damaged: there is one, or one that lies in another file.
    """
    if sum(data.dtype.itemsize * math.prod(data.shape) for _, data in _datasets(group)) > size:
        raise Damaged("is damaged")


def _datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """All data sets below a group, sorted by their whole names; ours have no links to other files."""
    for name in sorted(group):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise Damaged("is damaged")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{prefix}{name}/")
        elif item.is_virtual or item.external or item.dtype.hasobject:
            raise Damaged("is damaged")
        else:
            yield prefix + name, item


def _contents_hash(file: h5py.File, items: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.sha256(str(file.attrs[ATTRIBUTE]).encode())
    for name, data in items:
        digest.update(f"\n{name} {data.dtype.str} {data.shape} ".encode())
        for block in _blocks(data):
            digest.update(block.tobytes())
    return digest.hexdigest()


def _blocks(data: Any) -> Iterator[NDArray[Any]]:
    """The values of an array or a data set, a limited number of rows at a time."""
    if not data.shape or 0 in data.shape:
        yield np.asarray(data[()])
        return
    rows = max(1, BLOCK * data.shape[0] // (data.size * data.dtype.itemsize))
    for start in range(0, data.shape[0], rows):
        yield np.asarray(data[start : start + rows])


def made_of_text(made_of: MadeOf) -> str:
    """As the attribute of a file has it."""
    return made_of if isinstance(made_of, str) else json.dumps(made_of, sort_keys=True)
