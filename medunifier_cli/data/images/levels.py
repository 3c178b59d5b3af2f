"""Intensities of more than 8 bits -> 8-bit grey levels, and the error of an image that cannot be used."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.5, 99.5)
"""Percentiles that become black and white where levels have more than 8 bits and no window. The bits a file
declares say little about those it uses: 12-bit data in a 16-bit PNG would be nearly black."""
Reason = Literal["missing", "truncated", "undecodable"]


class BadImage(Exception):
    """An image file that is left out: counted and listed, never fatal.

    Args:
        reason: what is counted.
        detail: what is listed with it; the same on every machine, so no addresses and no temporary names.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadImage], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


def rescale_intensity(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Levels of more than 8 bits -> uint8, between the percentiles `STRETCH`."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
    if not finite.size:
        raise BadImage("undecodable", "no finite value")
    low, high = np.percentile(finite[:: max(1, finite.size >> 20)], PERCENTILES)
    if high <= low:  # nearly all pixels alike: whatever there is lies outside the percentiles
        low, high = float(finite.min()), max(float(finite.max()), float(finite.min()) + 1)
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) * (255 / (high - low))
    levels: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return levels
