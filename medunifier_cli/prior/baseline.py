"""The baselines of a prior: codes sampled independently by their frequency; and a check for collapsed codes.

Letters: n maps of H x W codes out of K, L = H * W.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import CheckpointError
from medunifier_cli.model.vqvae.quantizer import COLLAPSED

PSEUDO_COUNT = 1.0
"""Added to each code's count, so that a code unseen in training costs a finite number of nats."""
POSITION_WEIGHT = 16.0
"""Weight of the overall frequencies in those of one position, in counts (a Dirichlet prior)."""

Maps = NDArray[np.uint16]


@dataclass(frozen=True)
class Baseline:
    """What sampling each code independently reaches on held-out maps, in nats per code; and perplexities."""

    unigram: float
    """By their frequency in training."""
    place_unigram: float
    """By their frequency in training at the same position of the map."""
    accuracy: float
    """Share of held-out codes that are the most frequent training code at their position."""
    perplexity: float
    """exp of the training codes' entropy, from 1 to K."""
    place_perplexity: float
    """exp of their mean entropy at one position. Near 1, the map is the same for every image, however many
    codes it uses: the marginal perplexity alone misleads."""


def baseline(train_nHW: Maps, heldout_nHW: Maps, size: int) -> Baseline:
    """Fit both unigrams on training maps and measure them on held-out ones."""
    train = train_nHW.reshape(len(train_nHW), -1).astype(np.int64)
    heldout = heldout_nHW.reshape(len(heldout_nHW), -1).astype(np.int64)
    positions = np.arange(train.shape[1])
    count_LK = np.stack([np.bincount(train[:, position], minlength=size) for position in positions])
    count_K = count_LK.sum(axis=0)
    share_K = (count_K + PSEUDO_COUNT) / (count_K + PSEUDO_COUNT).sum()
    # At one position most of the K codes never occur in training. Backing off to the overall frequencies
    # instead of a flat count keeps this the stronger of the two baselines on small data, too.
    share_LK = (count_LK + POSITION_WEIGHT * share_K) / (len(train) + POSITION_WEIGHT)
    return Baseline(
        unigram=float(-np.log(share_K[heldout]).mean()),
        place_unigram=float(-np.log(share_LK[positions, heldout]).mean()),
        # The most frequent code is chosen on training maps: chosen on the held-out ones, it would be too
        # good.
        accuracy=float((heldout == count_LK.argmax(axis=1)).mean()),
        # From raw counts: smoothing would hide a collapse, which is what these two are for.
        perplexity=float(np.exp(_entropy(count_K))),
        place_perplexity=float(np.exp(np.mean([_entropy(count) for count in count_LK]))),
    )


def refuse_collapsed(level: str, codes: Baseline, size: int, where: str) -> None:
    """Raises CheckpointError for codes that a prior could learn nothing from.

    Args:
        level: `top` or `bottom`, for the message.
        codes: measured by `baseline`.
        size: K.
        where: folder of the pre-training run, for the message.
    """
    if codes.perplexity < COLLAPSED:
        raise CheckpointError(
            f"{where}: the {level} codebook has collapsed: perplexity {codes.perplexity:.2f} of {size}, "
            "nearly all codes are the same, so images cannot differ in them; pre-train again with "
            "model.generator.codebook=ema and model.generator.revive_dead_codes=true"
        )
    # A map can use many codes and still be one and the same map for all images: each position its own code.
    if codes.place_perplexity < COLLAPSED:
        raise CheckpointError(
            f"{where}: the {level} codes depend on the position, not on the image: perplexity "
            f"{codes.perplexity:.0f} over the map, {codes.place_perplexity:.2f} at one position; pre-train "
            "again with a smaller model.generator.position_scale or model.generator.feature_norm=batch"
        )


def _entropy(count_K: NDArray[np.int64]) -> float:
    """Nats."""
    # Codes that never occur add 0, the limit of p log p.
    share = count_K[count_K > 0] / count_K.sum()
    return float(-(share * np.log(share)).sum())
