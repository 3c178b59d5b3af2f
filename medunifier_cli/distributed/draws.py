"""Random numbers as functions of (seed, purpose, step or row), the same for any number of ranks.

Counter-based (Philox), so row r of step s needs no history: a resumed or differently split run draws alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEGATIVE_TEXT, NEGATIVE_IMAGE, REVIVAL, DROPOUT, TEXT_DROP, TEXT_VIEW, SCORED_PAIRS, AUGMENT = range(8)
"""Purposes of random numbers. Part of the key, so that no two purposes share a stream."""
# the numbers are in every finished run's results: new purposes go to the end


ROUNDS = 10
MULTIPLIERS, WEYL = (0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
"""Constants of Philox4x64 (Salmon et al. 2011)."""


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
    # A number depends on nothing but its position: not on the batch, the micro-batch or the rank that asks
    # for it. It is the first output of `philox(seed, purpose, (position, 0, 0, 0))`, for all of them at once:
    # a generator each would take 2 ms for 64, in the middle of a step.
    words = _philox_block(seed, purpose, np.asarray(positions, dtype=np.uint64))
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _philox_block(seed: int, stream: int, position_B: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """First word of the first block of Philox4x64-10 (Salmon et al. 2011, section 2.2) at each position."""
    zero = np.zeros_like(position_B)
    # as NumPy, which counts before it generates; a carry reaches the second word of the counter
    first = position_B + np.uint64(1)
    x: list[NDArray[np.uint64]] = [first, (first == 0).astype(np.uint64), zero, zero]
    key = [seed, stream]
    for number in range(ROUNDS):
        high_0, low_0 = _product(MULTIPLIERS[0], x[0])
        high_1, low_1 = _product(MULTIPLIERS[1], x[2])
        k0, k1 = (np.uint64((k + number * w) % 2**64) for k, w in zip(key, WEYL, strict=True))
        x = [high_1 ^ x[1] ^ k0, low_1, high_0 ^ x[3] ^ k1, low_0]
    return x[0]


def _product(factor: int, x_B: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """High and low 64 bits of a product of 128, by halves of 32 bits."""
    half, mask = np.uint64(32), np.uint64(2**32 - 1)
    a_high, a_low = np.uint64(factor >> 32), np.uint64(factor & (2**32 - 1))
    b_high, b_low = x_B >> half, x_B & mask
    low = a_low * b_low
    middle = a_high * b_low + (low >> half)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> half) + (other >> half), np.uint64(factor) * x_B


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
