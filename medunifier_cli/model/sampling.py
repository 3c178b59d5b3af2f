"""Sample tokens or codes from logits, with random numbers that do not depend on the batch size.

R rows, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.distributed.draws import philox
from medunifier_cli.errors import MuError


@dataclass(frozen=True)
class Draws:
    """Seed and settings of sampling a code from logits."""

    seed: int
    temperature: float = 1.0
    """Divides the logits; 0 always takes the most likely code."""
    top_k: int = 0
    """Keep the k most likely codes, and those as likely as the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely codes that together reach this probability; 1 keeps all."""
    guidance: float = 1.0
    """Classifier-free guidance g: logits without text + g * (with - without); 1 is plain conditioning."""

    def check(self) -> None:
        """Raises MuError for a value out of range."""
        # comparisons that NaN fails, so that it is refused as well
        for name, in_range, allowed in (
            ("seed", 0 <= self.seed < 2**64, "from 0 to 2^64 - 1"),
            ("temperature", 0 <= self.temperature < np.inf, "a number from 0 on"),
            ("top-k", self.top_k >= 0, "0 (off) or a number of codes"),
            ("top-p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("guidance", 0 <= self.guidance < np.inf, "a number from 0 on"),
        ):
            if not in_range:
                raise MuError(f"{name} must be {allowed}, not {getattr(self, name.replace('-', '_'))}")


def uniforms(seed: int, level: int, samples: range, positions: int) -> np.ndarray:  # type: ignore[type-arg]
    """Numbers in (0, 1], float64 [samples, positions]: a function of (seed, level, sample, position) alone.

    Philox (Salmon et al. 2011) keyed by the seed, with level (0 top, 1 bottom) and sample in its counter.
    """
    numbers = np.empty((len(samples), positions))
    for row, number in zip(numbers, samples, strict=True):
        # the lowest words of the counter stay 0, as Philox itself counts up in them
        # (0, 1] instead of [0, 1): at 0 the first code would be chosen even where its probability is 0
        row[:] = 1.0 - philox(seed, counter=(0, 0, number, int(level))).random(positions)
    return numbers


def draw_codes(logits_RK: Tensor, target_R: Tensor, draws: Draws) -> Tensor:
    """Sample one class in each row: the inverse of the cumulative distribution at `target_R`.

    Args:
        logits_RK: float64, or float32 where speed counts more than the last bits; finite.
        target_R: float64 in (0, 1], uniform random numbers.
        draws: temperature and truncation.

    Returns:
        int64 [R]; a code without probability is never drawn.
    """
    if draws.temperature == 0:
        return logits_RK.argmax(-1)
    # the maximum is taken off before the division: a temperature near 0 would overflow otherwise
    scaled = (logits_RK - logits_RK.amax(-1, keepdim=True)) / draws.temperature
    if 0 < draws.top_k < scaled.shape[-1]:
        last = scaled.topk(draws.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < last, -torch.inf)
    if draws.top_p < 1:
        ordered = scaled.sort(-1, descending=True).values
        share = ordered.softmax(-1)
        # a code stays if those before it are below top_p, so the one that reaches it is kept too, and never
        # none
        kept = share.cumsum(-1) - share < draws.top_p
        last = ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        scaled = scaled.masked_fill(scaled < last, -torch.inf)
    cumulative = scaled.softmax(-1).cumsum(-1)
    # times the last sum, which rounding may leave below 1, so that no target lies beyond the last code
    # a search: to compare each target with all K sums takes longer than the softmax
    target_R1 = target_R[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target_R1)[:, 0]
