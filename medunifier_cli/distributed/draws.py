"""Random numbers as functions of (seed, purpose, step or row), the same for any number of ranks.

Counter-based (Philox), so row r of step s needs no history: a resumed or differently split run draws alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

(
    NEGATIVE_TEXT, NEGATIVE_IMAGE, REVIVAL, DROPOUT, TEXT_DROP, TEXT_VIEW, SCORED_PAIRS, AUGMENT, TOKEN_DROP,
    CODE_MASK, CODE_MASK_HELD_OUT,
) = range(11)  # fmt: skip
"""Purposes of random numbers. Part of the key, so that no two purposes share a stream."""
# the numbers are in every finished run's results: new purposes go to the end


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
    return _rows(seed, purpose, positions, 1, word=0)[:, 0]


def uniforms(seed: int, purpose: int, positions: Sequence[int], count: int) -> Tensor:
    """`count` float64 in [0, 1) for each position of the sample order; [B, count] on the CPU."""
    # the lowest word counts on within a row, so a position is in the next one, and no two rows overlap
    return _rows(seed, purpose, positions, count, word=1)


def _rows(seed: int, purpose: int, positions: Sequence[int], count: int, word: int) -> Tensor:
    # A number depends on nothing but its position: not on the batch, the micro-batch or the rank that asks
    # for it. One generator is set to each position in turn: to make a new one each takes three times as long.
    random = philox(seed, purpose)
    state: Any = random.bit_generator.state
    numbers = np.empty((len(positions), count))
    for row, position in zip(numbers, positions, strict=True):
        state["state"]["counter"][word] = int(position)
        random.bit_generator.state = state
        row[:] = random.random(count)
    return torch.from_numpy(numbers)


def step_seed(seed: int, purpose: int, *position: int) -> int:
    """A 63-bit seed for PyTorch's generators from (seed, purpose, position)."""
    # SeedSequence mixes its words: seeds of neighbouring steps have nothing in common, where a sum such as
    # seed + step would give step 1 of seed 0 the stream of step 0 of seed 1
    words = np.random.SeedSequence((seed, purpose, *position)).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(seed: int, purpose: int, *position: int) -> torch.Generator:
    """A CPU generator seeded by (seed, purpose, position)."""
    # on the CPU whatever the device: streams of CUDA generators differ from those of the CPU
    return torch.Generator().manual_seed(step_seed(seed, purpose, *position))


def choose(weight_BM: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw a column for each row with probability proportional to its weight, by the inverse of the CDF.

    Args:
        weight_BM: non-negative, on any device.
        uniform_B: float64 in [0, 1).

    Returns:
        int64 [B] on the CPU; -1 where a row has no positive weight.
    """
    # fp64 on the CPU: a cumulative sum on a GPU is added up in another order and may pick another column
    cdf = weight_BM.double().cpu().cumsum(dim=1)
    total = cdf[:, -1:]
    # u <= 1 - 2^-53, so u * total never rounds up to total, and the chosen column has a positive weight;
    # `right` passes over columns of weight 0, which end where the one before them does
    column = torch.searchsorted(cdf, uniform_B[:, None] * total, right=True)
    return torch.where(total > 0, column, -1)[:, 0]
