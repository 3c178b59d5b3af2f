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


def philox(seed: int, stream: int = 0, counter: Sequence[int] = (0, 0, 0, 0)) -> np.random.Generator:
    """The counter-based generator (Philox, Salmon et al. 2011) behind every random number of the project.

    Args:
        seed: of the run, in [0, 2^64).
        stream: separates draws of different purpose under one seed, in [0, 2^64).
        counter: where in the stream the numbers begin, four words of 64 bits, the lowest first. One call
            to the generator consumes counters upwards from here.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(counter, dtype=np.uint64)))


def uniform(seed: int, purpose: int, positions: Sequence[int]) -> Tensor:
    """One float64 in [0, 1) for each position of the sample order; [B] on the CPU."""
    # One generator per row, not one per batch: a row's number must not depend on which rows share its batch.
    numbers = [philox(seed, purpose, (int(position), 0, 0, 0)).random() for position in positions]
    return torch.tensor(numbers, dtype=torch.float64)


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
