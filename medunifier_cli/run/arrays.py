"""Check what an HDF5 file holds before it is used: a right attribute does not make right arrays."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


def is_own_data(data: object) -> bool:
    """Whether an item of an HDF5 file is an array whose bytes lie in this file, unpacked.

    Ours are written so. Others may name files anywhere on the disk, or unpack to any size.
    """
    if not isinstance(data, h5py.Dataset):
        return False
    plain = data.external is None and not data.is_virtual and data.id.get_create_plist().get_nfilters() == 0
    # a kilobyte of header can announce more than the memory holds
    return plain and data.shape is not None and data.nbytes <= data.id.get_storage_size()


def fits(array: NDArray[Any], kind: type[np.generic], *shape: int | None) -> bool:
    """Whether an array has this kind of numbers and this shape; None stands for any length."""
    return (
        np.issubdtype(array.dtype, kind)
        and array.ndim == len(shape)
        and all(wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True))
    )
