"""What a DICOM header says of display: modality transform, look-up tables, windows (PS3.3, C.11.1, C.11.2).

Headers of real files are wrong in known ways: tables of 12 bits, of fewer bits than they declare, with bytes
where words belong; windows with empty values. Each is read as far as it can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray


@dataclass(frozen=True)
class LookUpTable:
    """One item of a Modality or VOI LUT Sequence."""

    first: int
    """The input that the first entry is for; lower ones get the same."""
    entries: NDArray[Any]
    bits: int
    """Bits per entry that the file declares."""

    @property
    def top(self) -> int:
        """The entry that stands for white.

        Some tables exceed the bits they declare, and some declare 16 while no entry needs more than 10.
        """
        largest = int(self.entries.max())
        return max((1 << min(self.bits, max(largest.bit_length(), 1))) - 1, largest)

    @property
    def doubt(self) -> str:
        """What is wrong with the declared bits; empty if nothing."""
        used = int(self.entries.max()).bit_length()
        return f"a look-up table of {used} bits that declares {self.bits}" if used < self.bits else ""

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """The entry of each value, of the same shape; values beyond the table get its last entry."""
        wide = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
        place = (wide - self.first).clip(0, len(self.entries) - 1).astype(np.int64)
        found: NDArray[Any] = self.entries[place]
        return found


def look_up_table(dataset: pydicom.Dataset, sequence: str) -> LookUpTable | None:
    """The first table of `ModalityLUTSequence` or `VOILUTSequence`; None if there is none to be read."""
    if not dataset.get(sequence):
        return None
    item = dataset[sequence].value[0]
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or len(descriptor) != 3 or not data:
        return None
    count = int(descriptor[0]) or 1 << 16  # 65,536 does not fit the field and is written as 0
    if isinstance(data, bytes):
        words = ">u2" if dataset.original_encoding[1] is False else "<u2"
        # Tables of 8 bits come with a word or with a byte for each entry.
        data = np.frombuffer(data[: 2 * count], words if len(data) >= 2 * count else "u1")
    entries = np.atleast_1d(np.asarray(data))[:count]
    return LookUpTable(int(descriptor[1]), entries.astype(np.uint16), int(descriptor[2]))


def modality(stored: NDArray[Any], dataset: pydicom.Dataset) -> NDArray[Any]:
    """Stored values -> the values that windows refer to; unchanged where the file has no transform."""
    table = look_up_table(dataset, "ModalityLUTSequence")
    if table is not None:
        return table.apply(stored)
    slope, intercept = numbers(dataset, "RescaleSlope"), numbers(dataset, "RescaleIntercept")
    if slope and intercept and slope[0] and intercept[0] is not None:
        return stored.astype(np.float64) * slope[0] + intercept[0]
    return stored


def window(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Centre and width of the first window that has both; None if there is none."""
    pairs = zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False)
    return next(((c, w) for c, w in pairs if c is not None and w is not None and w >= 1), None)


def numbers(dataset: pydicom.Dataset, name: str) -> list[float | None]:
    """Values of an attribute, None for each that is empty or no number; an empty list if it is absent."""
    try:
        value = dataset.get(name)
        several = isinstance(value, pydicom.multival.MultiValue | list | tuple)
        return [_number(one) for one in (value if several else [value])] if value not in (None, "") else []
    except (ValueError, TypeError):  # pydicom parses the text when it is asked for
        return []


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None
