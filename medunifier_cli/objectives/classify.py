"""The loss of fine-tuning: cross-entropy, or binary cross-entropy over known labels.

B images of this rank and micro-batch, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.distributed import world
from medunifier_cli.model.precision import at_least_fp32


def classification_loss(
    logits_BC: Tensor, target: Tensor, weight_2C: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss `total` and monitor `accuracy`; their averages over ranks are those of all ranks' images.

    Args:
        logits_BC: any precision.
        target: int64 [B], a class each; or float [B, C] of 1, 0 and NaN for unknown.
        weight_2C: weights of negatives and positives of each class; None for 1. With one class a sample the
            positives' are used. The loss is the weighted mean, as PyTorch's own.
    """
    logits = at_least_fp32(logits_BC)
    if target.dim() == 1:
        loss = F.cross_entropy(logits, target, reduction="none")
        weight = torch.ones_like(loss) if weight_2C is None else weight_2C[1][target]
        correct = (logits.argmax(dim=1) == target).float()
        counted = torch.ones_like(correct)
    else:
        known = ~torch.isnan(target)
        # 0 for the unknown, whose loss is then finite and weighted away: NaN * 0 would stay NaN, in the
        # gradient too
        truth = torch.where(known, target, 0.0)
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        weight = known.to(loss.dtype)
        if weight_2C is not None:
            weight = weight * torch.where(truth > 0, weight_2C[1], weight_2C[0])
        # a logit above 0 is a probability above one half
        correct = (((logits > 0) == (truth > 0)) & known).float()
        counted = known.float()
    # over the weights of all ranks: a mean of the ranks' own means would count a rank with few known labels
    # as much as one with many
    total = world.share_of_mean((weight * loss).sum(), world.total(weight.sum().detach(), loss.device))
    accuracy = world.share_of_mean(correct.sum().detach(), world.total(counted.sum(), loss.device))
    return {"total": total}, {"accuracy": accuracy}


def balanced(counts_2C: NDArray[np.int64], one_class: bool) -> Tensor:
    """Weights inversely proportional to frequency, float32 [2, C].

    One class a sample: n / (C n_c), as scikit-learn's `balanced`. Labels: n / (2 n_0) and n / (2 n_1), so
    that both sides of each label weigh the same.

    Args:
        counts_2C: negatives and positives of each class.
        one_class: each sample has one class, not any number of labels.
    """
    negative, positive = counts_2C.astype(np.float64)
    n = negative + positive
    if one_class:
        weight = n / (len(n) * positive)  # a class without samples is refused before training
        return torch.tensor(np.stack([weight, weight]), dtype=torch.float32)
    return torch.tensor(np.stack([n / (2 * negative), n / (2 * positive)]), dtype=torch.float32)
