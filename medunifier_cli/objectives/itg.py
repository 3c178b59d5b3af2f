"""Image-grounded text generation (paper, equations 15 to 17): causal language modelling after the queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.data.contract import PackedText
from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.objectives import Objective


def decoder_input(text: PackedText, start_B: Tensor, dec_id: int) -> PackedText:
    """The same text with [DEC] in place of [CLS]. `start_B`: packed index of each first token."""
    return PackedText(text.ids_N.index_fill(0, start_B, dec_id), text.lengths_B)


def next_tokens(text: PackedText, start_B: Tensor) -> tuple[Tensor, Tensor]:
    """Which packed positions predict, and what: (int64 [P], int64 [P]) with P = N - B.

    Every token but a text's last predicts its successor; [SEP] ends a text. Nothing else is ever a target.
    """
    predicts = torch.ones_like(text.ids_N, dtype=torch.bool)
    predicts[torch.cat([start_B[1:], start_B.new_tensor([len(text.ids_N)])]) - 1] = False
    position_P = predicts.nonzero()[:, 0]
    return position_P, text.ids_N[position_P + 1]


def itg_loss(logits_PK: Tensor, target_P: Tensor) -> Objective:
    """Equation (15): sum over the P predicted tokens, to be divided by their global number.

    The paper divides by N * L_t; texts differ in length here and padding is no target, so the mean is over
    real tokens.
    """
    loss = F.cross_entropy(at_least_fp32(logits_PK), target_P, reduction="sum")
    right = (logits_PK.argmax(dim=1) == target_P).float().sum()
    return Objective(loss, {"itg_right": right.detach()})
