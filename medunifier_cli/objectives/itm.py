"""Image-text matching (paper, equations 13 and 14) and its hard negatives (Li et al. 2021, ALBEF)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.objectives import Objective


def negative_weights(
    similarity_BG: Tensor,
    own_B: Tensor,
    digest_B: Tensor,
    digest_G: Tensor,
    hard: bool,
    exclude_same_text: bool,
) -> Tensor:
    """How likely each of G candidates is drawn as the negative of each of B rows, not normalised.

    Args:
        similarity_BG: ITC similarity over temperature; with `hard` its softmax weighs the draw.
        own_B: column of the row's own partner, which is never drawn.
        digest_B, digest_G: text hashes of the rows and of the candidates.
        hard: False draws uniformly.
        exclude_same_text: a candidate whose text equals the row's, word for word, is never drawn.
    """
    weight = torch.softmax(at_least_fp32(similarity_BG), dim=1) if hard else torch.ones_like(similarity_BG)
    forbidden = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, own_B[:, None], True)
    if exclude_same_text:
        forbidden |= digest_B[:, None] == digest_G[None, :]
    # a weight that underflowed to 0 would leave a confident row without negatives
    return weight.clamp(min=1e-12).masked_fill(forbidden, 0.0)


def itm_loss(logits_M2: Tensor, matched_M: Tensor) -> Objective:
    """Image-text matching, equation (13): sum over the M rows, to be divided by the global number of rows.

    Args:
        logits_M2: averaged over queries; rows are positives, image negatives and text negatives.
        matched_M: int64, 1 where the pair belongs together.

    Raises:
        ValueError: if the two lengths differ.
    """
    if len(logits_M2) != len(matched_M):
        raise ValueError(f"{len(logits_M2)} rows of logits, {len(matched_M)} answers")
    loss = F.cross_entropy(logits_M2, matched_M, reduction="sum")
    right = (logits_M2.argmax(dim=1) == matched_M).float().sum()
    return Objective(loss, {"itm_right": right.detach()})
