"""Render the radiograph of a case at a given size.

As on a film, the attenuation along each ray is summed: soft tissue, minus the air of the lungs, plus bone. A
tone curve then turns attenuation into grey levels; strongly attenuating parts are white.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import lesions
from .anatomy import LUNGS, SIGN, Anatomy, make_anatomy
from .canvas import Array, Canvas, Points
from .case import (
    EXPOSURE_STREAM,
    VESSEL_STREAM,
    Case,
    Side,
    make_case,
)

Strokes = list[tuple[Points, float, float]]
"""Argument of `Canvas.stroke`: groups of (lines, width, value)."""

_AIR = 0.46
"""Attenuation that a fully aerated lung lacks."""
_HEART = 0.88
"""Share of the ray through the lung that the heart displaces where they overlap."""
_NOISE = 0.012
"""Standard deviation of the noise at 64 x 64, as a share of the grey range."""
_VESSELS_PER_LUNG = 9
_LETTER_L = np.array([[[0.925, 0.045], [0.925, 0.095], [0.955, 0.095]]])
_RIB = 0.026
"""Width of ribs and clavicles, in image widths."""


@dataclass(frozen=True)
class PhantomImage:
    """Renders one image of the data set when it is called; pickles to a few bytes."""

    seed: int
    split: str
    number: int

    def __call__(self, size: int) -> NDArray[np.uint8]:
        """uint8 [size, size], 0 is black."""
        return draw(make_case(self.seed, self.split, self.number), size)


def draw(case: Case, size: int) -> NDArray[np.uint8]:
    """The radiograph of a case, uint8 [size, size], rendered at that size and not resized."""
    grey: NDArray[np.uint8] = np.rint(255 * develop(case, attenuation(case, size))).astype(np.uint8)
    return grey


def attenuation(case: Case, size: int) -> Array:
    """Attenuation without noise, float32 [size, size]; about 0 (air) to 1 (abdomen)."""
    chest = make_anatomy(case)
    canvas = Canvas(size, chest.tilt, chest.shift, chest.zoom)
    sheet = canvas.fill(chest.lungs.values())
    lungs = canvas.soften(sheet, 0.005)
    depth = 0.45 + 0.55 * canvas.soften(sheet, 0.045)  # less air towards the edges of a lung
    heart = canvas.soften(canvas.fill([chest.heart(), *_great_vessels(chest)]), 0.008)
    air = lungs * (1 - _HEART * heart) * (1 - lesions.opacity(case, chest, canvas))

    total = _soft_tissue(chest, canvas)
    total -= _AIR * depth * air
    total += 0.05 * heart
    total += _bones(chest, canvas, air)
    total -= 0.14 * canvas.soften(canvas.stroke(_airways(chest)), 0.006)
    gain = lesions.vessel_gain(case)
    total += 0.14 * gain * _vessels(case, chest, canvas, gain) * (0.25 + 0.75 * air) * lungs
    if chest.bubble:
        total -= 0.22 * canvas.soften(canvas.fill([_bubble(chest)]), 0.008)
    if chest.marked:
        total += 0.5 * canvas.soften(canvas.stroke([(_LETTER_L, 0.010, 1.0)]), 0.002)
    return total


def develop(case: Case, total: Array) -> Array:
    """Attenuation -> grey levels in [0, 1], with the exposure and the noise of the case."""
    rng = case.rng(EXPOSURE_STREAM)
    # Saturates towards white: differences between thick parts are less visible than between thin ones.
    bent = 1 - np.exp(-1.9 * np.maximum(total, 0))
    contrast, gain, fog = rng.uniform(1.3, 1.55), rng.uniform(1.00, 1.08), rng.uniform(0.06, 0.10)
    grey = bent ** np.float32(contrast) * np.float32(gain) + np.float32(fog)
    noise = rng.standard_normal(total.shape, dtype=np.float32)
    # Smaller pixels receive fewer photons and are noisier.
    grey += np.float32(_NOISE * (len(total) / 64) ** 0.2) * noise
    clipped: Array = np.clip(grey, 0, 1)
    return clipped


def _soft_tissue(chest: Anatomy, canvas: Canvas) -> Array:
    sheet = canvas.fill([chest.body()])
    body, rounded = canvas.soften(sheet, 0.004), canvas.soften(sheet, 0.05)
    across = np.exp(-(((canvas.x - np.float32(chest.middle)) / 0.30) ** 2))
    belly = 1 / (1 + np.exp((0.84 - canvas.y) * 14))
    tissue: Array = body * (0.10 + 0.38 * rounded + 0.24 * across + 0.30 * belly)
    if chest.breasts:
        for side in LUNGS:
            centre = (chest.middle + SIGN[side] * 0.22, 0.66)
            canvas.add_blob(tissue, centre, (0.10, 0.07), 0.10 * chest.breasts)
    return tissue


def _great_vessels(chest: Anatomy) -> Iterator[Points]:
    """Outlines of the aortic knob and the upper mediastinum, rendered with the heart."""
    turn = np.linspace(0, 2 * math.pi, 24)
    y = chest.hilum_y - 0.135
    yield np.stack([chest.middle + 0.055 + 0.038 * np.cos(turn), y + 0.042 * np.sin(turn)], 1)
    m, bottom = chest.middle, 0.6
    yield np.array([[m - 0.062, 0.0], [m + 0.058, 0.0], [m + 0.08, bottom], [m - 0.085, bottom]])


def _bones(chest: Anatomy, canvas: Canvas, air: Array) -> Array:
    behind, front = chest.ribs()
    collar = chest.clavicles()
    deep = [(behind, _RIB, 0.9)]
    near = [(front, _RIB, 0.55), (collar, _RIB, 0.9)]
    # A bone is a tube with edges denser than its middle; three pixels of width are enough to show it.
    if canvas.size * _RIB > 3:
        deep = [(behind, _RIB, 1.0), (behind, 0.55 * _RIB, 0.7)]
        near += [(collar, _RIB, 1.0), (collar, 0.55 * _RIB, 0.75)]
    bones = 0.085 * canvas.soften(canvas.stroke(deep), 0.003)
    bones += 0.10 * canvas.soften(canvas.stroke(near), 0.005)
    # Scattered radiation hides the bones outside the lungs.
    total: Array = bones * (0.5 + 0.5 * air)
    m = chest.middle
    column = np.exp(-(((canvas.x - np.float32(m)) / 0.042) ** 4))
    discs = np.cos((canvas.y - np.float32(chest.top)) * np.float32(2 * math.pi / 0.062))
    total += column * (0.10 + 0.018 * discs)
    return total


def _airways(chest: Anatomy) -> Strokes:
    m, fork = chest.middle - 0.004, chest.hilum_y - 0.09
    trachea = np.array([[[m, -0.1], [m + 0.003, chest.top], [m, fork]]])
    roots = [(chest.hilum(side), 0.03 * SIGN[side]) for side in LUNGS]
    bronchi = np.array([[[m, fork - 0.01], [x - short, y - 0.01]] for (x, y), short in roots])
    return [(trachea, 0.036, 1.0), (bronchi, 0.024, 0.7)]


def _vessels(case: Case, chest: Anatomy, canvas: Canvas, gain: float) -> Array:
    """Two trees of branching lines, thick at the hilum and fading towards the periphery."""
    rng = case.rng(VESSEL_STREAM)
    lines = [group for side in LUNGS for group in _tree(chest.hilum(side), side, rng)]
    wide = [(points, width * math.sqrt(gain), value) for points, width, value in lines]
    vessels = canvas.soften(canvas.stroke(wide), 0.0035 * gain)
    for side in LUNGS:
        canvas.add_blob(vessels, chest.hilum(side), (0.026 * math.sqrt(gain), 0.05), 0.7)
    return vessels


def _tree(root: tuple[float, float], side: Side, rng: np.random.Generator) -> Strokes:
    """Trunks in two parts, of which the outer one is thinner, and two branches from each trunk."""
    n = _VESSELS_PER_LUNG
    fan = np.linspace(-1.4, 1.5, n) + rng.normal(0, 0.12, n)  # top to bottom, radians from the horizontal
    turn = rng.normal(0, 0.2, (n, 3, 6)).cumsum(-1)
    length = rng.uniform(0.16, 0.30, n)
    leave = rng.uniform(-0.05, 0.06, n)
    start = np.stack([root[0] + SIGN[side] * 0.3 * np.abs(leave), root[1] + leave], 1)
    trunks = _paths(start, fan[:, None] + turn[:, 0], length, side)
    half = trunks.shape[1] // 2
    joint = rng.integers(half // 2, half + half // 2, (n, 2))
    forks = trunks[np.arange(n)[:, None], joint].reshape(2 * n, 2)
    bent = fan[:, None, None] + turn[:, 1:] + np.array([[-0.5], [0.5]])
    branches = _paths(forks, bent.reshape(2 * n, -1), 0.5 * length.repeat(2), side)
    return [(branches, 0.005, 0.3), (trunks[:, half:], 0.006, 0.4), (trunks[:, : half + 1], 0.010, 0.75)]


def _paths(start_K2: Points, angles_KN: Points, length_K: Points, side: Side) -> Points:
    """Lines [K, N + 1, 2] that start at the given points and take N equal steps in the given directions."""
    step = length_K[:, None, None] / angles_KN.shape[1]
    steps = np.stack([SIGN[side] * np.cos(angles_KN), np.sin(angles_KN)], -1) * step
    path: Points = np.concatenate([np.zeros_like(steps[:, :1]), steps.cumsum(1)], 1)
    return start_K2[:, None] + path


def _bubble(chest: Anatomy) -> Points:
    """Air above fluid in the stomach: an outline with a round top and a level bottom."""
    turn = np.linspace(math.pi, 2 * math.pi, 14)
    x, y = chest.middle + 0.5 * chest.half_width, chest.domes["left"] + 0.09
    return np.stack([x + 0.5 * chest.bubble * np.cos(turn), y + 0.45 * chest.bubble * np.sin(turn)], 1)
