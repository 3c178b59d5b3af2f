"""Cache arrays on disk: an HDF5 file that knows what it was made of and is made again if that has changed.

A cache may be deleted at any time and never decides a result. A file that is damaged, or does not say what it
was made of, is reported on stderr and made again; a file made of something else (another checkpoint,
other data) is replaced without a word, because that is what happens after every training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import MuError
from medunifier_cli.files import atomic_make, explained
from medunifier_cli.terminal.say import say

Arrays = dict[str, NDArray[Any]]
"""Name of a data set in the file -> its values."""
MadeOf = str | Mapping[str, Any]
"""Everything the values depend on: checkpoint, data, settings. A mapping has to fit JSON."""
ATTRIBUTE = "made_of"


def open_hdf5(path: Path, mode: str = "r") -> h5py.File:
    """Open an HDF5 file without HDF5's own lock, which fails where the file system has none.

    Ours need no lock: a file is written under a temporary name by one process, and not changed after that.
    """
    return h5py.File(path, mode, locking=False)


def cached(path: Path, made_of: MadeOf, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
    """The arrays of a cache file, computed and written first if it does not hold them.

    A folder that cannot be written to costs time, not the run: the arrays are returned all the same.

    Args:
        path: of the file; its folder is created.
        made_of: compared with what the file says.
        make: computes the arrays.
    """
    if is_cached(path, made_of):
        try:
            with open_hdf5(path) as file:
                return {name: data[()] for name, data in file.items()}
        except (OSError, RuntimeError):  # the head of the file is whole, its data are not
            _warn(path, "is damaged")
    arrays = {name: np.asarray(values) for name, values in make().items()}
    try:
        _write(path, made_of, lambda file: _store(file, arrays))
    except MuError as error:
        say(f"not cached, the next call computes it again: {error}")
    return arrays


def cached_file(path: Path, made_of: MadeOf, fill: Callable[[h5py.File], None]) -> Path:
    """The path of a cache file, written first if it does not hold what is asked for.

    For arrays that do not fit into memory, or that several processes map from the file.

    Args:
        path: of the file; its folder is created.
        made_of: compared with what the file says.
        fill: writes the data sets into the open file.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    if not is_cached(path, made_of):
        _write(path, made_of, fill)
    return path


def is_cached(path: Path, made_of: MadeOf) -> bool:
    """Whether a file holds what is asked for; warns about a file that is damaged or no cache of ours."""
    if not path.exists():
        return False
    try:
        with open_hdf5(path) as file:
            if ATTRIBUTE not in file.attrs:
                _warn(path, "does not say what it was made of")
                return False
            return bool(file.attrs[ATTRIBUTE] == _text(made_of))
    except OSError:
        _warn(path, "is damaged")
        return False


def _write(path: Path, made_of: MadeOf, fill: Callable[[h5py.File], None]) -> None:
    def make(temporary: Path) -> None:
        with open_hdf5(temporary, "w") as file:
            fill(file)
            # Last: a file without it is never taken for whole.
            file.attrs[ATTRIBUTE] = _text(made_of)

    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_make(path, make)


def _store(file: h5py.File, arrays: Arrays) -> None:
    for name, values in arrays.items():
        file.create_dataset(name, data=values)


def _text(made_of: MadeOf) -> str:
    return made_of if isinstance(made_of, str) else json.dumps(made_of, sort_keys=True)


def _warn(path: Path, what: str) -> None:
    say(f"{path}: {what}; computing it again")
