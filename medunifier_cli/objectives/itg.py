"""Image-grounded text generation (paper, equations 15 to 17): causal language modelling after the queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.data.contract import PackedText
from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.objectives import Objective


def said_and_next(text: PackedText, dec_id: int) -> tuple[PackedText, Tensor]:
    """What the decoder reads, [DEC] w_1 ... w_n, and what it is to say after each of them, w_1 ... w_n [SEP].

    Returns:
        Texts one token shorter, P = N - B tokens in all, and int64 targets [P]. Nothing else is a target.
    """
    end_B = text.lengths_B.cumsum(0)
    first_N = torch.zeros(len(text.ids_N), dtype=torch.bool)
    last_N = first_N.clone()
    first_N[end_B - text.lengths_B] = True
    last_N[end_B - 1] = True
    device = text.ids_N.device
    first_B, read_P, next_P = (
        chosen_N.nonzero()[:, 0].to(device, non_blocking=True) for chosen_N in (first_N, ~last_N, ~first_N)
    )
    ids_N = text.ids_N.index_fill(0, first_B, dec_id)
    return PackedText(ids_N[read_P], text.lengths_B - 1), text.ids_N[next_P]


def itg_loss(logits_PK: Tensor, target_P: Tensor) -> Objective:
    """Equation (15): sum over the P predicted tokens, to be divided by their global number.

    The paper divides by N * L_t; texts differ in length here and padding is no target, so the mean is over
    real tokens.
    """
    loss = F.cross_entropy(at_least_fp32(logits_PK), target_P, reduction="sum")
    right = (logits_PK.argmax(dim=1) == target_P).float().sum()
    return Objective(loss, {"itg_right": right.detach()})
