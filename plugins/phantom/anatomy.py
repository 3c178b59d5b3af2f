"""Generate a random chest as numbers and outlines: lungs, heart, ribs, clavicles and body.

Coordinates are those of `canvas`; the patient's right is on the viewer's left, as on every radiograph. The
proportions are those of an upright postero-anterior film: a heart 0.38 to 0.47 times as wide as the chest
inside (0.5 is the usual limit of cardiomegaly), left dome of the diaphragm lower than the right, clavicles
above the apices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .canvas import Points, smooth_closed, smooth_open
from .case import (
    ANATOMY_STREAM,
    ATELECTASIS,
    CARDIOMEGALY,
    CLASSES,
    LESION_STREAM,
    ZONES,
    Case,
    Finding,
    Side,
    Zone,
)

SIGN: Mapping[str, int] = {"right": -1, "left": 1}
"""Direction in x from the midline: the patient's right is at the smaller x."""
LUNGS: tuple[Side, Side] = ("right", "left")

_ENLARGED = ((0.54, 0.58), (0.60, 0.64), (0.67, 0.72))
"""Range of the cardiothoracic ratio in mild, moderate and severe cardiomegaly."""
_RAISED_DOME = (0.06, 0.08, 0.10)
"""Elevation of the diaphragm (volume loss) in small, moderate and large atelectasis, in image heights."""
_HEART_RIGHT = 0.32
"""Share of the heart's width to the patient's right of the midline."""
_RIBS = 9
_BEHIND, _FRONT = np.linspace(-1.35, 0, 11), np.linspace(0, 1.05, 8)
"""Angles along a rib: posterior from the spine to the wall, anterior from there towards the sternum."""


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest."""

    middle: float
    half_width: float
    """From the midline to the inner chest wall at its widest."""
    wall: float
    """Thickness of the soft tissue outside the ribs."""
    top: float
    """y of the apices."""
    domes: Mapping[Side, float]
    """y of the top of each hemidiaphragm."""
    hilum_y: float
    """y of the right hilum."""
    heart_ratio: float
    """Cardiothoracic ratio: width of the heart over the inner width of the chest."""
    shoulder: float
    """y at which the shoulders leave the image."""
    tilt: float
    shift: tuple[float, float]
    zoom: float
    bubble: float
    """Width of the gastric air bubble, 0 if there is none."""
    breasts: float
    """Density of breast shadows, 0 if there are none."""
    marked: bool
    """Whether the film shows a side marker, the letter L above the left shoulder."""

    def zone_y(self, side: Side, zone: Zone, at: float = 0.5) -> float:
        """y at the fraction `at` of a zone's height; zones are thirds from apex to dome."""
        height = self.domes[side] - self.top
        return self.top + height * (ZONES.index(zone) + at) / 3

    def lateral(self, side: Side, y: float) -> float:
        """x of the inner chest wall at height y."""
        return float(np.interp(y, *self._wall(side)))

    def _wall(self, side: Side) -> tuple[Points, Points]:
        """y and x of the wall, from below the apex to the costophrenic angle."""
        wall = self.lungs[side][3 * 8 : 7 * 8 + 1]
        return wall[:, 1], wall[:, 0]

    @cached_property
    def lungs(self) -> Mapping[Side, Points]:
        """Closed outlines of both lungs."""
        return {side: self._lung(side) for side in LUNGS}

    def _lung(self, side: Side) -> Points:
        """Apex, lateral wall, costophrenic angle, dome, mediastinal border."""
        w, dome, top = self.half_width, self.domes[side], self.top
        height = 0.75 - top  # fixed, so that the wall keeps its shape when atelectasis raises the dome
        corners = [
            (0.072, top + 0.11), (0.12, top + 0.02), (0.44 * w, top), (0.68 * w, top + 0.065),
            (0.86 * w, top + 0.33 * height), (0.96 * w, top + 0.65 * height), (w, top + 0.93 * height),
            (0.975 * w, max(dome + 0.085, 0.80)), (0.86 * w, dome + 0.035), (0.55 * w, dome),
            (0.25 * w, dome + 0.03), (0.07, dome + 0.05), (0.06, 0.45),
        ]  # fmt: skip
        return self._mirrored(smooth_closed(corners), side)

    def heart(self) -> Points:
        """Closed outline, exactly `heart_ratio` times as wide as the chest inside."""
        base, bottom = 0.40 + 0.4 * (self.top - 0.12), max(self.domes.values()) + 0.02
        h = bottom - base
        corners = [
            (-0.42, base), (-0.74, base + 0.28 * h), (-0.98, base + 0.56 * h), (-1.0, base + 0.82 * h),
            (-0.75, bottom + 0.02), (0.4, bottom + 0.01), (0.86, bottom - 0.05 * h), (1.0, base + 0.74 * h),
            (0.86, base + 0.50 * h), (0.58, base + 0.24 * h), (0.38, base + 0.05 * h), (0.1, base - 0.02),
        ]  # fmt: skip
        points = smooth_closed(corners)
        width = 2 * self.half_width * self.heart_ratio
        right, left = _HEART_RIGHT * width, (1 - _HEART_RIGHT) * width
        x = points[:, 0]
        x = np.where(x < 0, x * right / -x.min(), x * left / x.max())
        return np.stack([self.middle + x, points[:, 1]], 1)

    def ribs(self) -> tuple[Points, Points]:
        """Centre lines of the posterior and the anterior parts of the ribs, each [2 x 9, N, 2]."""
        i = np.arange(_RIBS)
        y = self.top + 0.045 + i * (0.80 - self.top) / (_RIBS - 0.5)
        wall = np.stack([np.interp(y + 0.03, *self._wall(side)) for side in LUNGS])
        reach = (wall - self.middle) * 1.03
        reach[:, :2] *= (0.80, 0.97)  # the first two ribs are short loops around the apex
        t = np.concatenate([_BEHIND, _FRONT])
        down = (0.055 + 0.008 * i[:, None] + np.where(t < 0, 0.0, 0.055)) * np.sin(t)
        loops = np.empty((2, _RIBS, len(t), 2))
        loops[..., 0] = self.middle + reach[..., None] * np.cos(t) ** 0.8
        loops[..., 1] = y[:, None] + down
        lines = loops.reshape(2 * _RIBS, len(t), 2)
        return lines[:, : len(_BEHIND)], lines[:, len(_BEHIND) :]

    def clavicles(self) -> Points:
        """One S-shaped line per side, [2, N, 2]."""
        y, w = self.top + 0.08, self.half_width
        corners = [
            (0.035, y + 0.03),
            (0.10, y + 0.015),
            (0.20, y - 0.015),
            (0.31, y - 0.05),
            (w + 0.04, y - 0.06),
        ]
        return smooth_open(np.stack([self._mirrored(np.array(corners), side) for side in LUNGS]))

    def hilum(self, side: Side) -> tuple[float, float]:
        """Point at which the vessels enter the lung; the left one is higher."""
        return self.middle + SIGN[side] * 0.105, self.hilum_y - (0.02 if side == "left" else 0.0)

    def body(self) -> Points:
        """Outline of neck, shoulders and trunk; it leaves the image at the bottom."""
        trunk, y = self.half_width + self.wall, self.shoulder
        corners = [
            (0.13, -0.4), (0.15, y - 0.16), (0.22, y - 0.11), (0.40, y - 0.04), (0.75, y + 0.04),
            (0.95, y + 0.30), (trunk + 0.12, y + 0.36), (trunk + 0.02, y + 0.48), (trunk, 0.8),
            (trunk + 0.02, 1.4),
        ]  # fmt: skip
        half = smooth_open(np.array([corners]))[0]
        return np.vstack([self._mirrored(half, "left"), self._mirrored(half, "right")[::-1]])

    def _mirrored(self, points: Points, side: Side) -> Points:
        """Points with x as a distance from the midline -> points with x on the given side."""
        return np.stack([self.middle + SIGN[side] * points[:, 0], points[:, 1]], 1)


def make_anatomy(case: Case) -> Anatomy:
    """The chest of a case; an enlarged heart and raised domes are part of it, other findings are not."""
    # The order of the random calls is part of the data set: another order gives other patients.
    rng = case.rng(ANATOMY_STREAM)
    habitus = rng.uniform(-1, 1)  # slender to broad
    top = rng.uniform(0.09, 0.13)
    right_dome = rng.uniform(0.71, 0.76)
    domes: dict[Side, float] = {"right": right_dome, "left": right_dome + rng.uniform(0.01, 0.04)}
    ratio = rng.uniform(0.38, 0.47)
    half_width = 0.395 + 0.012 * habitus + rng.uniform(-0.008, 0.008)
    chest = Anatomy(
        middle=0.5 + rng.normal(0, 0.006),
        half_width=half_width,
        wall=0.132 + 0.03 * habitus + rng.uniform(-0.015, 0.015),
        top=top,
        domes=domes,
        hilum_y=(top + right_dome) / 2,
        heart_ratio=ratio,
        shoulder=top + rng.uniform(-0.08, -0.02),
        tilt=math.radians(rng.uniform(-2.5, 2.5)),
        shift=(rng.uniform(-0.012, 0.012), rng.uniform(-0.015, 0.015)),
        zoom=rng.uniform(0.97, 1.04),
        bubble=rng.uniform(0.08, 0.14) * (rng.random() < 0.6),
        breasts=rng.uniform(0.5, 1.0) * (rng.random() < 0.4),
        marked=bool(rng.random() < 0.4),
    )
    for finding in case.findings:
        if finding.name == CARDIOMEGALY:
            rng = case.rng(LESION_STREAM, CLASSES.index(CARDIOMEGALY))
            chest = replace(chest, heart_ratio=rng.uniform(*_ENLARGED[finding.grade]))
        elif finding.name == ATELECTASIS:
            raised = _RAISED_DOME[finding.grade]
            domes |= {side: domes[side] - raised for side in sides_of(finding)}
            chest = replace(chest, domes=domes)
    return chest


def sides_of(finding: Finding) -> tuple[Side, ...]:
    """The lungs affected by a finding; both for findings without a side."""
    if finding.side is None or finding.side == "bilateral":
        return LUNGS
    return (finding.side,)
