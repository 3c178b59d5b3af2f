"""What a prior is measured against: codes drawn one by one by their frequency, and whether they say anything.

Letters: n maps of H x W codes out of K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import CheckpointError

PSEUDO_COUNT = 1.0
"""Added to each code's count, so that a code unseen in training costs a finite number of nats."""
PLACE_WEIGHT = 16.0
"""Counts that the overall frequencies are worth beside those of one place."""
COLLAPSED = 1.5
"""Perplexity below which codes say nothing; 1 is one code everywhere."""

Maps = NDArray[np.uint16]


@dataclass(frozen=True)
class Baseline:
    """Held-out nats per code of drawing codes independently."""

    unigram: float
    """By their frequency in training."""
    place_unigram: float
    """By their frequency in training at the same place of the map."""
    accuracy: float
    """Share of held-out codes that are the most frequent one at their place."""
    perplexity: float
    """exp of the training codes' entropy, from 1 to K."""
    place_perplexity: float
    """exp of their mean entropy at one place. Near 1, a map is the same for every image, however many codes
    it uses: the marginal perplexity alone misleads."""


def baseline(train_nHW: Maps, heldout_nHW: Maps, size: int) -> Baseline:
    """Fit both unigrams on training maps and measure them on held-out ones."""
    train = train_nHW.reshape(len(train_nHW), -1).astype(np.int64)
    heldout = heldout_nHW.reshape(len(heldout_nHW), -1).astype(np.int64)
    places = np.arange(train.shape[1])
    count_LK = np.stack([np.bincount(train[:, place], minlength=size) for place in places])
    count_K = count_LK.sum(axis=0)
    share_K = (count_K + PSEUDO_COUNT) / (count_K + PSEUDO_COUNT).sum()
    share_LK = (count_LK + PLACE_WEIGHT * share_K) / (len(train) + PLACE_WEIGHT)
    return Baseline(
        unigram=float(-np.log(share_K[heldout]).mean()),
        place_unigram=float(-np.log(share_LK[places, heldout]).mean()),
        accuracy=float((heldout == count_LK.argmax(axis=1)).mean()),
        perplexity=float(np.exp(_entropy(count_K))),
        place_perplexity=float(np.exp(np.mean([_entropy(count) for count in count_LK]))),
    )


def refuse_collapsed(level: str, found: Baseline, size: int, where: str) -> None:
    """Raises CheckpointError for codes that a prior could learn nothing from."""
    if found.perplexity < COLLAPSED:
        raise CheckpointError(
            f"{where}: the {level} codebook has collapsed: perplexity {found.perplexity:.2f} of {size}, "
            "nearly every code is the same and images cannot differ in it; pre-train again with "
            "model.generator.codebook=ema and model.generator.revive_dead_codes=true"
        )
    if found.place_perplexity < COLLAPSED:
        raise CheckpointError(
            f"{where}: the {level} codes stand for places, not for images: perplexity {found.perplexity:.0f} "
            f"over the map, {found.place_perplexity:.2f} at one place; pre-train again with a smaller "
            "model.generator.position_scale or model.generator.feature_norm=batch"
        )


def _entropy(count_K: NDArray[np.int64]) -> float:
    """Nats."""
    share = count_K[count_K > 0] / count_K.sum()
    return float(-(share * np.log(share)).sum())
