"""Sampling without a cache: the whole network for every position, the choice of a code in plain loops."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.prior.pixelsnail import PixelSnail


@torch.inference_mode()
def full_logits(
    prior: PixelSnail,
    codes_BHW: Tensor,
    top_codes: Tensor | None = None,
    condition: Tensor | None = None,
    drop_condition: Tensor | None = None,
) -> Tensor:
    """[B, K, H, W]; one forward pass per position, in which all later codes are 0."""
    _, height, width = codes_BHW.shape
    known = torch.zeros_like(codes_BHW)
    out = []
    for row in range(height):
        for column in range(width):
            logits = prior(known, top_codes=top_codes, condition=condition, drop_condition=drop_condition)
            out.append(logits[:, :, row, column])
            known[:, row, column] = codes_BHW[:, row, column]
    return torch.stack(out, -1).unflatten(-1, (height, width))


def slow_code(
    logits: list[float], u: float, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> int:
    """One code: add up the codes' probabilities until their sum exceeds `u` in [0, 1)."""
    if temperature == 0:
        return logits.index(max(logits))
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    ranking = sorted(range(len(weights)), key=lambda code: -weights[code])
    if top_k:
        ranking = ranking[:top_k]
    total, kept, reached = sum(weights[code] for code in ranking), [], 0.0
    for code in ranking:
        if reached >= top_p:
            break
        kept.append(code)
        reached += weights[code] / total
    total = sum(weights[code] for code in kept)
    walked = 0.0
    for code in sorted(kept):
        walked += weights[code] / total
        # The cached sampler asks for the first sum that reaches 1 - random(); here it is the same number.
        if walked >= 1.0 - u:
            return code
    return max(kept)


@torch.inference_mode()
def slow_sample(
    prior: PixelSnail,
    shape: tuple[int, int],
    samples: range,
    seed: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    condition: Tensor | None = None,
    guidance: float = 1.0,
    top_codes: Tensor | None = None,
    positions: int | None = None,
) -> Tensor:
    """int64 [B, H, W], one code at a time; with `positions` only the first ones, for timing."""
    height, width = shape
    level = 0 if top_codes is None else 1
    generators = [
        np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, number, level])) for number in samples
    ]
    codes = torch.zeros(len(samples), height, width, dtype=torch.int64)
    for position in range(height * width if positions is None else positions):
        row, column = divmod(position, width)
        logits = prior(codes, top_codes=top_codes, condition=condition)[:, :, row, column].double()
        if guidance != 1:
            null = prior(codes, top_codes=top_codes)[:, :, row, column].double()
            logits = (1 - guidance) * null + guidance * logits
        for i, generator in enumerate(generators):
            codes[i, row, column] = slow_code(
                logits[i].tolist(), generator.random(), temperature, top_k, top_p
            )
    return codes
