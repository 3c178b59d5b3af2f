"""Decide which findings a phantom patient has, before any image is rendered or report written.

Every random choice comes from a generator that is seeded with (seed, split, number, purpose). So a case does
not depend on how many cases there are or in which order they are made, and removing one finding changes
neither the anatomy nor the other findings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Side = Literal["right", "left", "bilateral"]
Zone = Literal["upper", "mid", "lower"]

ATELECTASIS = "Atelectasis"
CARDIOMEGALY = "Cardiomegaly"
PNEUMONIA = "Pneumonia"
EDEMA = "Edema"
EFFUSION = "Pleural Effusion"
CLASSES = (ATELECTASIS, CARDIOMEGALY, PNEUMONIA, EDEMA, EFFUSION)
"""The order of the MIMIC and CheXpert 5x200 sets."""

EXTENTS = ("small", "moderate", "large")
SEVERITIES = ("mild", "moderate", "severe")
ZONES: tuple[Zone, ...] = ("upper", "mid", "lower")
SPLITS = ("train", "valid", "test")

# One block of 20 cases: 4 normal, 2 with each finding alone, 4 with two findings and 2 with three.
# Half of the cases have exactly one finding, and all five are equally frequent, because a model does not
# learn a rare finding from a few thousand images.
_BLOCK: tuple[str | int, ...] = (*(0,) * 4, *CLASSES, *CLASSES, *(2,) * 4, *(3,) * 2)

# The purposes of the random streams. Changing a number changes every image or text of that purpose.
_BLOCK_STREAM, _FINDING_STREAM = 0, 1
ANATOMY_STREAM, VESSEL_STREAM, LESION_STREAM, EXPOSURE_STREAM, REPORT_STREAM = range(2, 7)


@dataclass(frozen=True)
class Finding:
    """One finding. `side` is the patient's side; `zone` is a third of the lung's height."""

    name: str
    size: str
    """One of EXTENTS; for cardiomegaly and edema one of SEVERITIES."""
    side: Side | None = None
    """None for cardiomegaly; edema is always bilateral."""
    zone: Zone | None = None
    """Set for atelectasis and pneumonia only."""

    @property
    def grade(self) -> int:
        """The size as a number: 0 (small or mild), 1 or 2 (large or severe)."""
        return SEVERITIES.index(self.size) if self.size in SEVERITIES else EXTENTS.index(self.size)


@dataclass(frozen=True)
class Case:
    """One patient with one radiograph."""

    seed: int
    split: str
    number: int
    findings: tuple[Finding, ...]
    """In the order of CLASSES, each class at most once."""

    def rng(self, purpose: int, *more: int) -> np.random.Generator:
        """An independent generator for each purpose."""
        return stream(self.seed, self.split, self.number, purpose, *more)


def stream(seed: int, split: str, number: int, *purpose: int) -> np.random.Generator:
    """The generator of one purpose of one case; different arguments give independent generators."""
    return np.random.default_rng([seed, SPLITS.index(split), number, *purpose])


def make_case(seed: int, split: str, number: int) -> Case:
    """Case `number` of a split: its findings with their side, zone and size."""
    block, position = divmod(number, len(_BLOCK))
    kind = _shuffled_block(seed, split, block)[position]
    rng = stream(seed, split, number, _FINDING_STREAM)
    if isinstance(kind, str):
        return Case(seed, split, number, (_random_finding(kind, rng),))
    names = sorted(rng.choice(len(CLASSES), size=kind, replace=False).tolist())
    while True:  # until no finding hides another
        findings = tuple(_random_finding(CLASSES[i], rng) for i in names)
        if _all_visible(findings):
            return Case(seed, split, number, findings)


@lru_cache(maxsize=16)
def _shuffled_block(seed: int, split: str, block: int) -> tuple[str | int, ...]:
    order = stream(seed, split, block, _BLOCK_STREAM).permutation(len(_BLOCK))
    return tuple(_BLOCK[i] for i in order)


def _random_finding(name: str, rng: np.random.Generator) -> Finding:
    grade = int(rng.integers(3))
    if name == CARDIOMEGALY:
        return Finding(name, SEVERITIES[grade])
    if name == EDEMA:
        return Finding(name, SEVERITIES[grade], side="bilateral")
    sides: tuple[Side, ...] = ("right", "left", "bilateral")
    side = sides[rng.choice(3, p=(0.4, 0.4, 0.2))]
    if name == EFFUSION:
        return Finding(name, EXTENTS[grade], side)
    # Atelectasis is most frequent at the lung bases, pneumonia a little less so.
    weights = (0.2, 0.25, 0.55) if name == ATELECTASIS else (0.3, 0.3, 0.4)
    return Finding(name, EXTENTS[grade], side, ZONES[rng.choice(3, p=weights)])


def _all_visible(findings: tuple[Finding, ...]) -> bool:
    """False if one finding would hide another, so that nobody could read it from the image."""
    by_name = {f.name: f for f in findings}
    edema, effusion = by_name.get(EDEMA), by_name.get(EFFUSION)
    focal = [f for f in findings if f.zone is not None]
    if edema and edema.grade == 2 and focal:
        return False
    if len(focal) == 2 and focal[0].zone == focal[1].zone and _share_side(*focal):
        return False
    # A moderate effusion covers the lower zone, a large one the mid zone too.
    if effusion and effusion.grade:
        covered = ZONES[-effusion.grade :]
        return not any(f.zone in covered and _share_side(f, effusion) for f in focal)
    return True


def _share_side(a: Finding, b: Finding) -> bool:
    return a.side == b.side or "bilateral" in (a.side, b.side)
