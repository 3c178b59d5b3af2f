"""Random numbers as functions of (seed, purpose, step or row), the same for any number of ranks.

Counter-based (Philox), so row r of step s needs no history: a resumed or differently split run draws alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NEGATIVE_TEXT, NEGATIVE_IMAGE, REVIVAL, DROPOUT, TEXT_DROP, TEXT_VIEW = range(6)
"""What a number is drawn for."""


def uniform(seed: int, purpose: int, places: Sequence[int]) -> Tensor:
    """One float64 in [0, 1) for each place of the sample order; [B] on the CPU."""
    key = np.array([seed, purpose], dtype=np.uint64)
    draw = [np.random.Generator(np.random.Philox(key=key, counter=int(place))).random() for place in places]
    return torch.tensor(draw, dtype=torch.float64)


def step_seed(seed: int, purpose: int, *position: int) -> int:
    """A 63-bit seed for PyTorch's generators from (seed, purpose, position)."""
    words = np.random.SeedSequence((seed, purpose, *position)).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(seed: int, purpose: int, *position: int) -> torch.Generator:
    """A CPU generator seeded by (seed, purpose, position)."""
    return torch.Generator().manual_seed(step_seed(seed, purpose, *position))


def choose(weight_BM: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw a column for each row with probability proportional to its weight, by the inverse of the CDF.

    Args:
        weight_BM: non-negative, on any device.
        uniform_B: float64 in [0, 1).

    Returns:
        int64 [B] on the CPU; -1 where a row has no positive weight.
    """
    cdf = weight_BM.double().cpu().cumsum(dim=1)
    total = cdf[:, -1:]
    # u <= 1 - 2^-53, so u * total never rounds up to total, and the column found has weight
    column = torch.searchsorted(cdf, uniform_B[:, None] * total, right=True)
    return torch.where(total > 0, column, -1)[:, 0]
