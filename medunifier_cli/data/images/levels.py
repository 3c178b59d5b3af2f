"""Rescale intensities of more than 8 bits, doubt levels that cannot be meant; the error for a bad image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PERCENTILES = (0.5, 99.5)
"""Percentiles that become black and white for images of more than 8 bits without a window. The bit depth that
a file declares says little about the range it uses: 12-bit data in a 16-bit PNG would be nearly black."""
FEW = 16
"""An image of fewer grey levels is doubted."""
END = 4
"""Number of levels, from black or from white, that count as one end of the range."""
NEARLY_ALL = 0.97
"""An image with more than this share of its pixels at one end is doubted. Measured in docs/decisions.md."""
TOGETHER = 1 << 20
"""Values that are rescaled together."""
Reason = Literal["missing", "truncated", "undecodable", "blank"]


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
    finite = values.reshape(-1)
    if values.dtype.kind == "f" and not (good := np.isfinite(values)).all():
        finite = values[good]
    if not finite.size:
        raise BadImage("undecodable", "no finite value")
    # About a million values, evenly spaced, estimate the percentiles closely enough; sorting all is slower.
    low, high = np.percentile(finite[:: max(1, finite.size >> 20)], PERCENTILES)
    if high <= low:  # nearly all pixels are equal: the few others lie outside the percentiles
        low, high = float(finite.min()), max(float(finite.max()), float(finite.min()) + 1)
    if values.dtype == np.uint8:  # through a table: floats of every pixel would take twelve times the memory
        found: NDArray[np.uint8] = _scaled(np.arange(256), low, high)[values]
        return found
    return _scaled(values, low, high)


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    def levels(part: NDArray[Any]) -> NDArray[Any]:
        return (np.nan_to_num(part.astype(np.float32), nan=low) - low) * (255 / (high - low))

    return by_rows(levels, values)


def by_rows(levels: Callable[[NDArray[Any]], Any], values: NDArray[Any]) -> NDArray[np.uint8]:
    """`levels(values)` rounded to whole grey levels, some rows at a time; uint8 of the same shape.

    The floats that conversions work on would take up to thirty times the memory of a whole image.

    Args:
        levels: in which every value stands for itself.
    """
    found = np.empty(values.shape, np.uint8)
    rows = max(1, TOGETHER // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        found[start : start + rows] = np.rint(levels(values[start : start + rows])).clip(0, 255)
    return found


def doubt(levels: NDArray[np.uint8] | Image.Image, *, coarse: bool = False) -> str:
    """Why decoded grey levels cannot be what was meant, such as `3 grey levels`; empty for an ordinary image.

    A wrong window, a look-up table with another range or a misread bit depth all end in one of two pictures:
    a handful of levels, or nearly every pixel black or white. Which header was wrong need not be known.

    Args:
        coarse: accept few levels if they span half of the range, as in a picture of 1 bit or of a small
            palette: the file has no others, and they are where they should be.
    """
    if not isinstance(levels, Image.Image):
        # Pillow counts seven million pixels in 4 ms; numpy's bincount would first widen them to 64 bits.
        levels = Image.fromarray(levels if levels.ndim == 2 else levels[None])
    counts = levels.histogram()
    total = max(sum(counts), 1)
    for end, share in (("black", sum(counts[:END]) / total), ("white", sum(counts[-END:]) / total)):
        if share > NEARLY_ALL:
            return f"{share:.0%} of the pixels {end}"
    present = [level for level, count in enumerate(counts) if count]
    if len(present) >= FEW or (coarse and present[-1] - present[0] >= len(counts) // 2):
        return ""
    return f"{len(present)} grey levels"


def reject_blank(values: NDArray[Any]) -> None:
    """Refuse values that show nothing.

    Raises:
        BadImage: all are equal, or there is none.
    """
    if not values.size or values.min() == values.max():
        raise BadImage("blank", "every pixel has the same value")
