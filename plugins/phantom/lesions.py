"""Render the findings that replace air in the lung: pneumonia, atelectasis, effusion and edema.

Each function returns an opacity in [0, 1] for every pixel: the share of the lung's air that is replaced by
water. Sizes are chosen so that even the smallest finding covers one 8 x 8 patch of a vision transformer at
64 x 64.
"""

from __future__ import annotations

import math

import numpy as np

from .anatomy import SIGN, Anatomy, sides_of
from .canvas import Array, Canvas
from .case import (
    ATELECTASIS,
    CLASSES,
    EDEMA,
    EFFUSION,
    LESION_STREAM,
    PNEUMONIA,
    Case,
    Finding,
    Side,
)

_FLUID_ABOVE_DOME = (0.035, 0.15, 0.29)
"""Fluid level of small, moderate and large effusions near the midline, in image heights above the dome."""
_FLUID_MENISCUS = (0.085, 0.10, 0.10)
"""How much higher the fluid reaches at the chest wall."""
_CONSOLIDATION_RADIUS = (0.070, 0.090, 0.120)
_BAND_WIDTH = (0.0135, 0.0165, 0.0195)
"""Standard deviation across a band of atelectasis; 0.0135 is about two pixels of 64 at half height."""
_BAND_LENGTH = (0.12, 0.14, 0.16)
_BANDS = (1, 2, 3)
_BAND_SLOPE = (0.20, 0.50)
"""Slope of a band in radians: it rises laterally, while ribs descend."""
_BAND_DENSITY = 2.0
_BAND_SPACING = 0.085
_HAZE = (0.50, 0.70, 0.95)
_LUMPS = 11
_AIR_BRONCHOGRAM = 0.35
_FULLEST = 0.93
"""Share of the air that the densest lesion replaces."""


def opacity(case: Case, chest: Anatomy, canvas: Canvas) -> Array:
    """Opacity of all findings of a case together, float32 [S, S]; it may extend beyond the lungs."""
    clear = np.ones_like(canvas.x)
    right = canvas.x < chest.middle
    halves = {"right": right, "left": ~right}
    for finding in case.findings:
        render = _RENDER.get(finding.name)
        if render is None:  # cardiomegaly, which `make_anatomy` has already applied
            continue
        rng = case.rng(LESION_STREAM, CLASSES.index(finding.name))
        for side in sides_of(finding):
            clear *= 1 - halves[side] * render(finding, side, chest, canvas, rng)
    return 1 - clear


def vessel_gain(case: Case) -> float:
    """Factor by which edema widens and blurs the vessels (congestion); 1 without edema."""
    return next((1.5 + 0.25 * f.grade for f in case.findings if f.name == EDEMA), 1.0)


def _consolidation(
    finding: Finding, side: Side, chest: Anatomy, canvas: Canvas, rng: np.random.Generator
) -> Array:
    """Pneumonia: a dense area with fuzzy edges, made of several blobs."""
    radius = _CONSOLIDATION_RADIUS[finding.grade] * rng.uniform(0.95, 1.1)
    x, y = _focus(finding, side, chest, rng, radius, near_wall=0.60)
    density: Array = np.zeros_like(canvas.x)
    canvas.add_blob(density, (x, y), (radius * 0.7, radius * 0.65), 0.9)
    for angle in rng.uniform(0, 2 * math.pi) + np.arange(_LUMPS) * 2.4:  # 2.4 rad: the golden angle
        far = radius * rng.uniform(0.1, 1.15)
        lump = radius * rng.uniform(0.2, 0.42)
        centre = (x + far * math.cos(angle), y + far * math.sin(angle))
        canvas.add_blob(density, centre, (lump * 1.2, lump), rng.uniform(0.35, 0.9))
    for _ in range(2):  # air bronchograms: dark bands of bronchi that keep their air
        turn = rng.uniform(-0.9, 0.9)
        centre = (x + radius * rng.uniform(-0.4, 0.4), y + radius * rng.uniform(-0.4, 0.4))
        canvas.add_band(density, centre, (radius * 0.6, 0.004), -_AIR_BRONCHOGRAM, turn)
    return _filled(density)


def _bands(finding: Finding, side: Side, chest: Anatomy, canvas: Canvas, rng: np.random.Generator) -> Array:
    """Atelectasis: one to three thick bands that rise slightly to the side."""
    length, width = _BAND_LENGTH[finding.grade], _BAND_WIDTH[finding.grade] * rng.uniform(0.95, 1.1)
    x, y = _focus(finding, side, chest, rng, 0.03, near_wall=0.56)
    slope = -SIGN[side] * rng.uniform(*_BAND_SLOPE)
    density: Array = np.zeros_like(canvas.x)
    for i in range(_BANDS[finding.grade]):
        drop = (i - (_BANDS[finding.grade] - 1) / 2) * _BAND_SPACING
        centre = (x + SIGN[side] * rng.uniform(-0.015, 0.015), y + drop)
        canvas.add_band(density, centre, (length, width), _BAND_DENSITY, slope + rng.uniform(-0.06, 0.06))
    return _filled(density)


def _fluid(finding: Finding, side: Side, chest: Anatomy, canvas: Canvas, rng: np.random.Generator) -> Array:
    """Effusion: fluid at the bottom of the chest, highest along the wall (the meniscus sign)."""
    level = chest.domes[side] - _FLUID_ABOVE_DOME[finding.grade] + rng.uniform(-0.012, 0.012)
    outward = (canvas.x - np.float32(chest.middle)) * np.float32(SIGN[side] / chest.half_width)
    rise = _FLUID_MENISCUS[finding.grade] * np.clip(outward - 0.25, 0, 1) ** 2 / 0.56
    depth = (canvas.y - np.float32(level) + rise) * np.float32(1 / 0.022)
    wet: Array = 1 / (1 + np.exp(np.clip(-depth, -30, 30)))
    return wet


def _haze(finding: Finding, side: Side, chest: Anatomy, canvas: Canvas, rng: np.random.Generator) -> Array:
    """Edema: haze around the hila (bat wings); from `moderate` on with septal lines at the lung base."""
    amount = _HAZE[finding.grade] * rng.uniform(0.95, 1.05)
    x, y = chest.hilum(side)
    density: Array = np.zeros_like(canvas.x)
    centre = (x + SIGN[side] * 0.05, y + 0.05)
    canvas.add_blob(density, centre, (0.085 + 0.015 * finding.grade, 0.15 + 0.02 * finding.grade), amount)
    for _ in range(6 + 4 * finding.grade):
        spot = (x + SIGN[side] * rng.uniform(0, 0.17), y + rng.uniform(-0.12, 0.22))
        canvas.add_blob(density, spot, (rng.uniform(0.02, 0.035), rng.uniform(0.02, 0.03)), 0.35 * amount)
    for i in range(4 * (finding.grade > 0)):
        low = chest.zone_y(side, "lower", 0.35 + 0.15 * i)
        line = (chest.lateral(side, low) - SIGN[side] * 0.03, low)
        canvas.add_blob(density, line, (0.015, 0.004), 0.3)
    return _filled(density)


def _filled(density: Array) -> Array:
    """Summed density, which has no upper limit -> share of the air that is replaced, below 1."""
    gone: Array = np.float32(_FULLEST) * (1 - np.exp(-np.maximum(density, 0)))
    return gone


def _focus(
    finding: Finding, side: Side, chest: Anatomy, rng: np.random.Generator, radius: float, near_wall: float
) -> tuple[float, float]:
    """A random point in the finding's zone, about `near_wall` of the way from the midline to the wall."""
    assert finding.zone is not None, f"{finding.name} has no zone"
    y = chest.zone_y(side, finding.zone, rng.uniform(0.4, 0.6))
    y = min(y, chest.domes[side] - 0.4 * radius)
    wall = chest.lateral(side, y)
    # The heart covers the medial part of the left base, so the focus moves outwards.
    aside = 0.08 if side == "left" and finding.zone == "lower" else 0.0
    share = near_wall + aside + rng.uniform(-0.05, 0.05)
    return chest.middle + share * (wall - chest.middle), y


_RENDER = {PNEUMONIA: _consolidation, ATELECTASIS: _bands, EFFUSION: _fluid, EDEMA: _haze}
