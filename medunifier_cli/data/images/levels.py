"""Rescale intensities of more than 8 bits to 8-bit grey levels; and the error for an unusable image."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.5, 99.5)
"""Percentiles that become black and white for images of more than 8 bits without a window. The bit depth that
a file declares says little about the range it uses: 12-bit data in a 16-bit PNG would be nearly black."""
Reason = Literal["missing", "truncated", "undecodable"]


class BadImage(Exception):
    """An image that cannot be used. It is counted, listed in `rejects.jsonl` and skipped, never fatal.

    Args:
        reason: rejects are counted by it.
        detail: listed with the reject. It must be the same on every machine, since `rejects.jsonl` is hashed:
            no memory addresses, no temporary file names.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    # An exception pickles as type(*args), and args is the one message passed to super().
    def __reduce__(self) -> tuple[type[BadImage], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


def rescale_intensity(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Rescale linearly so that `PERCENTILES` become 0 and 255; uint8 of the same shape."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
    if not finite.size:
        raise BadImage("undecodable", "no finite value")
    # About a million values, evenly spaced, estimate the percentiles closely enough; sorting all is slower.
    low, high = np.percentile(finite[:: max(1, finite.size >> 20)], PERCENTILES)
    if high <= low:  # nearly all pixels are equal: the few others lie outside the percentiles
        low, high = float(finite.min()), max(float(finite.max()), float(finite.min()) + 1)
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) * (255 / (high - low))
    levels: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return levels
