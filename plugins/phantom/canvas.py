"""Render outlines, lines and blurred spots to float arrays of any size.

Coordinates are anatomical: the patient is upright, x points to the viewer's right, y down, and the image is
[0, 1] x [0, 1]. The canvas tilts and shifts the points before it renders them. Rotating the finished image
instead would blur it and leave corners without content.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.float32]
Points = NDArray[np.float64]
"""[..., 2] anatomical x, y."""

_STEPS = 8
"""Points per segment of a smooth curve."""
_UNSEEN = 0.35
"""Standard deviation in pixels below which a blur is skipped: `fill` and `stroke` average over more."""


def _catmull_rom() -> Points:
    t = np.arange(_STEPS)[:, None] / _STEPS
    powers = np.hstack([t**0, t, t**2, t**3])
    weights = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    basis: Points = powers @ weights
    return basis


_BASIS = _catmull_rom()


def smooth_closed(corners: Sequence[tuple[float, float]]) -> Points:
    """A closed curve through all corners (Catmull-Rom spline), [8 N, 2]."""
    c = np.array([corners[-1], *corners, corners[0], corners[1]])
    return _spline(c)


def smooth_open(corners_KN2: Points) -> Points:
    """Open curves through K lists of corners, [K, 8 (N - 1), 2]; each ends just before its last corner."""
    c = corners_KN2
    return _spline(np.concatenate([2 * c[:, :1] - c[:, 1:2], c, 2 * c[:, -1:] - c[:, -2:-1]], 1))


def _spline(corners: Points) -> Points:
    """[..., N, 2], with one additional corner at either end -> [..., 8 (N - 3), 2]."""
    count = corners.shape[-2] - 3
    quads = np.stack([corners[..., i : i + count, :] for i in range(4)], -2)
    curve = _BASIS @ quads  # [..., N - 3, 8, 2]
    joined: Points = curve.reshape(*corners.shape[:-2], -1, 2)
    return joined


class Canvas:
    """One image size with one tilt, shift and zoom.

    Attributes:
        x, y: float32 [S, S], the anatomical coordinates of each pixel's centre.
    """

    def __init__(self, size: int, tilt: float, shift: tuple[float, float], zoom: float) -> None:
        """`tilt` in radians, `shift` in image widths, `zoom` about the image's centre."""
        self.size = size
        # Shapes are rendered larger and averaged for smooth edges; large images need less of it.
        self._over = 3 if size < 160 else 2
        self._zoom = zoom
        self._cos, self._sin = zoom * math.cos(tilt), zoom * math.sin(tilt)
        self._offset = 0.5 + shift[0], 0.5 + shift[1]
        centres = (np.arange(size) + 0.5) / size
        right, down = centres - self._offset[0], (centres - self._offset[1])[:, None]
        cos, sin = self._cos / zoom**2, self._sin / zoom**2
        self.x: Array = (0.5 + cos * right + sin * down).astype(np.float32)
        self.y: Array = (0.5 + cos * down - sin * right).astype(np.float32)

    def to_image(self, points: Points) -> Points:
        """Anatomical points [..., 2] -> image points, in image widths."""
        right, down = points[..., 0] - 0.5, points[..., 1] - 0.5
        placed = np.empty(points.shape)
        placed[..., 0] = self._cos * right - self._sin * down + self._offset[0]
        placed[..., 1] = self._sin * right + self._cos * down + self._offset[1]
        return placed

    def fill(self, shapes: Iterable[Points]) -> Image.Image:
        """An image of closed outlines, each [N, 2], as input of `soften`."""
        image, pen = self._sheet()
        for points in shapes:
            pen.polygon(self._pixels(points[None])[0], fill=255)
        return image.reduce(self._over)

    def stroke(self, lines: Iterable[tuple[Points, float, float]]) -> Image.Image:
        """An image of open lines, as input of `soften`.

        Args:
            lines: groups of (points [K, N, 2], width in image widths, value in [0, 1]).
        """
        image, pen = self._sheet()
        scale = self.size * self._over * self._zoom
        for group, width, value in lines:
            pixels = width * scale
            # A line thinner than one pixel is rendered one pixel wide, but fainter.
            ink, dots = round(255 * value * min(1.0, pixels)), max(1, round(pixels))
            for flat in self._pixels(group):
                pen.line(flat, fill=ink, width=dots)
        return image.reduce(self._over)

    def soften(self, sheet: Image.Image, blur: float) -> Array:
        """An image of `fill` or `stroke` as float32 [S, S] in [0, 1], blurred by `blur` image widths."""
        if blur * self.size > _UNSEEN:
            sheet = sheet.filter(ImageFilter.GaussianBlur(blur * self.size))
        return np.asarray(sheet, dtype=np.float32) * np.float32(1 / 255)

    def add_blob(
        self, target: Array, centre: tuple[float, float], radii: tuple[float, float], amount: float
    ) -> None:
        """Add a Gaussian bump of standard deviations `radii`, touching only the patch it covers.

        The bump is not tilted with the patient: a few degrees make no visible difference.
        """
        rows, columns, (px, py) = self._patch(centre, (3 * radii[0], 3 * radii[1]))
        scale = self.size * self._zoom
        across = (np.arange(columns.start, columns.stop) + (0.5 - px)) / (scale * radii[0])
        down = (np.arange(rows.start, rows.stop) + (0.5 - py)) / (scale * radii[1])
        bump = amount * np.exp(-0.5 * down**2)[:, None] * np.exp(-0.5 * across**2)
        target[rows, columns] += bump.astype(np.float32)

    def add_band(
        self,
        target: Array,
        centre: tuple[float, float],
        radii: tuple[float, float],
        amount: float,
        angle: float,
    ) -> None:
        """Add a band along `angle` (radians): `radii` are its extent and its standard deviation across."""
        half = 1.6 * radii[0] + 3 * radii[1]
        rows, columns, _ = self._patch(centre, (half, half))
        x, y = self.x[rows, columns] - np.float32(centre[0]), self.y[rows, columns] - np.float32(centre[1])
        cos, sin = math.cos(angle), math.sin(angle)
        along = (x * np.float32(cos / radii[0]) + y * np.float32(sin / radii[0])) ** 2
        across = (y * np.float32(cos / radii[1]) - x * np.float32(sin / radii[1])) ** 2
        target[rows, columns] += np.float32(amount) * np.exp(-0.5 * (along**3 + across))

    def _patch(
        self, centre: tuple[float, float], reach: tuple[float, float]
    ) -> tuple[slice, slice, tuple[float, float]]:
        """Rows and columns within `reach` of a point, and the point in pixels."""
        right, down = centre[0] - 0.5, centre[1] - 0.5
        px = self.size * (self._cos * right - self._sin * down + self._offset[0])
        py = self.size * (self._sin * right + self._cos * down + self._offset[1])
        wide, high = reach[0] * self._zoom * self.size, reach[1] * self._zoom * self.size
        return self._span(py, high), self._span(px, wide), (px, py)

    def _span(self, centre: float, reach: float) -> slice:
        start = min(max(0, int(centre - reach)), self.size)
        return slice(start, max(start, min(self.size, int(centre + reach) + 2)))

    def _sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        edge = self.size * self._over
        image = Image.new("L", (edge, edge))
        return image, ImageDraw.Draw(image)

    def _pixels(self, group_KN2: Points) -> list[list[float]]:
        """One flat list x, y, x, y, ... per line, in pixels of the enlarged image."""
        pixels = self.to_image(group_KN2) * (self.size * self._over) - 0.5
        flat: list[list[float]] = pixels.reshape(len(group_KN2), -1).tolist()
        return flat
