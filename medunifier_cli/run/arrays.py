"""Check what an HDF5 file holds before it is used: a right attribute does not make right arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from medunifier_cli.run.cache import Arrays, MadeOf, cached
from medunifier_cli.terminal.say import say


@dataclass(frozen=True)
class Column:
    """Numbers and shape of an array; None stands for any length."""

    kind: type[np.generic]
    shape: tuple[int | None, ...]

    def fits(self, array: NDArray[Any] | None) -> bool:
        """Whether an array has this kind of numbers and this shape."""
        return (
            array is not None
            and np.issubdtype(array.dtype, self.kind)
            and array.ndim == len(self.shape)
            and all(wanted in (None, n) for wanted, n in zip(self.shape, array.shape, strict=True))
        )


def cached_columns(
    path: Path,
    made_of: MadeOf,
    make: Callable[[], Mapping[str, NDArray[Any]]],
    columns: Mapping[str, Column],
) -> Arrays:
    """As `cache.cached`, for arrays that are declared; a file that holds others is reported and made again.

    Args:
        columns: name of an array -> what it has to be.
    """
    arrays = cached(path, made_of, make)
    if not all(column.fits(arrays.get(name)) for name, column in columns.items()):
        say(f"{path}: does not hold the arrays that were written; computing them again")
        path.unlink(missing_ok=True)
        arrays = cached(path, made_of, make)
    return arrays


def is_own_data(data: object) -> bool:
    """Whether an item of an HDF5 file is an array whose bytes lie in this file, unpacked.

    Ours are written so. Others may name files anywhere on the disk, or unpack to any size.
    """
    if not isinstance(data, h5py.Dataset):
        return False
    plain = data.external is None and not data.is_virtual and data.id.get_create_plist().get_nfilters() == 0
    # a kilobyte of header can announce more than the memory holds
    return plain and data.shape is not None and data.nbytes <= data.id.get_storage_size()
