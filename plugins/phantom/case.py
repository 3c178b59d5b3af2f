"""Who the phantom patients are: what case (seed, split, number) has, before anything is drawn or written.

Every random choice comes from a stream that (seed, split, number, purpose) names, so a case does not
depend on how many there are or in which order they are made, and switching one finding off leaves the
anatomy and all other findings as they were.
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
"""In the order of the MIMIC and CheXpert 5x200 sets."""

EXTENTS = ("small", "moderate", "large")
SEVERITIES = ("mild", "moderate", "severe")
ZONES: tuple[Zone, ...] = ("upper", "mid", "lower")
SPLITS = ("train", "valid", "test")

# What one block of 20 cases holds: 4 normal, 2 with each single finding, 4 with two and 2 with three.
# Half of the cases have exactly one, all five equally often: a rare finding is not learned.
_BLOCK: tuple[str | int, ...] = (*(0,) * 4, *CLASSES, *CLASSES, *(2,) * 4, *(3,) * 2)

_BLOCK_STREAM, _FINDING_STREAM = 0, 1
ANATOMY_STREAM, VESSEL_STREAM, LESION_STREAM, EXPOSURE_STREAM, REPORT_STREAM = range(2, 7)


@dataclass(frozen=True)
class Finding:
    """One finding. `side` is the patient's; `zone` is a third of the lung height."""

    name: str
    size: str
    """One of EXTENTS; for cardiomegaly and edema one of SEVERITIES."""
    side: Side | None = None
    """None for cardiomegaly; edema is always bilateral."""
    zone: Zone | None = None
    """Of atelectasis and pneumonia."""

    @property
    def grade(self) -> int:
        """0, 1 or 2: how large, whatever the words."""
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
        """A stream of its own for each purpose."""
        return stream(self.seed, self.split, self.number, purpose, *more)


def stream(seed: int, split: str, number: int, *purpose: int) -> np.random.Generator:
    """Random numbers named by their arguments; splits are disjoint by name."""
    return np.random.default_rng([seed, SPLITS.index(split), number, *purpose])


def make_case(seed: int, split: str, number: int) -> Case:
    """Case `number` of a split: what it has, where and how much."""
    block, place = divmod(number, len(_BLOCK))
    kind = _shuffled_block(seed, split, block)[place]
    rng = stream(seed, split, number, _FINDING_STREAM)
    if isinstance(kind, str):
        return Case(seed, split, number, (_draw_finding(kind, rng),))
    names = sorted(rng.choice(len(CLASSES), size=kind, replace=False).tolist())
    while True:
        findings = tuple(_draw_finding(CLASSES[i], rng) for i in names)
        if _all_visible(findings):
            return Case(seed, split, number, findings)


@lru_cache(maxsize=16)
def _shuffled_block(seed: int, split: str, block: int) -> tuple[str | int, ...]:
    order = stream(seed, split, block, _BLOCK_STREAM).permutation(len(_BLOCK))
    return tuple(_BLOCK[i] for i in order)


def _draw_finding(name: str, rng: np.random.Generator) -> Finding:
    grade = int(rng.integers(3))
    if name == CARDIOMEGALY:
        return Finding(name, SEVERITIES[grade])
    if name == EDEMA:
        return Finding(name, SEVERITIES[grade], side="bilateral")
    sides: tuple[Side, ...] = ("right", "left", "bilateral")
    side = sides[rng.choice(3, p=(0.4, 0.4, 0.2))]
    if name == EFFUSION:
        return Finding(name, EXTENTS[grade], side)
    # Atelectasis is a disease of the bases, pneumonia a little less so.
    weights = (0.2, 0.25, 0.55) if name == ATELECTASIS else (0.3, 0.3, 0.4)
    return Finding(name, EXTENTS[grade], side, ZONES[rng.choice(3, p=weights)])


def _all_visible(findings: tuple[Finding, ...]) -> bool:
    """False where one finding would hide another, which no reader could report."""
    by_name = {f.name: f for f in findings}
    edema, effusion = by_name.get(EDEMA), by_name.get(EFFUSION)
    focal = [f for f in findings if f.zone is not None]
    if edema and edema.grade == 2 and focal:
        return False
    if len(focal) == 2 and focal[0].zone == focal[1].zone and _share_side(*focal):
        return False
    # The fluid covers the lower zone from `moderate` on, and the mid zone when `large`.
    if effusion and effusion.grade:
        covered = ZONES[-effusion.grade :]
        return not any(f.zone in covered and _share_side(f, effusion) for f in focal)
    return True


def _share_side(a: Finding, b: Finding) -> bool:
    return a.side == b.side or "bilateral" in (a.side, b.side)
