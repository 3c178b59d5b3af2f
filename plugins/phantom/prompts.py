"""Zero-shot prompts of the phantom: one set in the words of its reports, one in words that no report uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import count, product

import numpy as np

from .case import (
    ATELECTASIS,
    CARDIOMEGALY,
    CLASSES,
    EDEMA,
    EFFUSION,
    EXTENTS,
    PNEUMONIA,
    SEVERITIES,
    ZONES,
    Finding,
    Side,
)
from .reports import impression

_PER_CLASS = 12
_SIDES: tuple[Side, ...] = ("right", "left", "bilateral")

OTHER_PROMPTS: Mapping[str, tuple[str, ...]] = {
    ATELECTASIS: (
        "Loss of lung volume.",
        "Incomplete expansion of part of a lung.",
        "Airless lung tissue forms a stripe.",
        "Dense streak from a deflated segment.",
        "Discoid scarring or plate of airless lung.",
        "Shrunken lobe with a raised diaphragm.",
    ),
    CARDIOMEGALY: (
        "Big heart.",
        "The cardiothoracic ratio exceeds one half.",
        "Widened cardiac shadow.",
        "Dilated ventricles make the heart broad.",
        "The heart takes up more than half of the chest.",
        "Globular heart shadow.",
    ),
    PNEUMONIA: (
        "Chest infection.",
        "Lobar infection with a dense white patch.",
        "Cloudy spot caused by bacteria.",
        "Alveoli filled with pus.",
        "Round opaque area of infected lung.",
        "Signs of a lower respiratory tract infection.",
    ),
    EDEMA: (
        "Fluid in the lungs from heart failure.",
        "Wet lungs.",
        "Bat wing pattern around both hila.",
        "Cephalization with septal lines.",
        "Water in the alveoli and interstitium.",
        "Congestive heart failure with fluid overload.",
    ),
    EFFUSION: (
        "Hydrothorax.",
        "Liquid between lung and chest wall.",
        "Meniscus sign hides the diaphragm.",
        "Fluid collects at the bottom of the chest.",
        "The lung base is white with a curved upper border.",
        "Water around the lung.",
    ),
}


@lru_cache(maxsize=1)
def report_prompts() -> Mapping[str, tuple[str, ...]]:
    """For each class, impressions of that finding alone, with varying size, side and zone."""
    rng = np.random.default_rng(0)  # a fixed seed: the prompts are the same for every data set seed
    return {name: tuple(_prompts(name, rng)) for name in CLASSES}


def _prompts(name: str, rng: np.random.Generator) -> Iterator[str]:
    sizes = SEVERITIES if name in (CARDIOMEGALY, EDEMA) else EXTENTS
    sides: tuple[Side | None, ...] = {CARDIOMEGALY: (None,), EDEMA: ("bilateral",)}.get(name, _SIDES)  # type: ignore[assignment]
    zones = ZONES if name in (ATELECTASIS, PNEUMONIA) else (None,)
    locations = list(product(sides, zones))
    rng.shuffle(locations)
    seen: set[str] = set()
    for i in count():
        side, zone = locations[i % len(locations)]
        finding = Finding(name, sizes[(i + i // len(locations)) % len(sizes)], side, zone)
        prompt = impression((finding,), rng)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt
        if len(seen) == _PER_CLASS:
            return
