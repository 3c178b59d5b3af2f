"""Similarity of every image with every text of the global batch (paper, equations 8 to 10).

B local pairs, G = ranks * B pairs of the global batch, Q queries, D width, E joint space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medunifier_cli.distributed import world
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.precision import full_precision


@dataclass(frozen=True)
class Similarity:
    """Similarity of the local rows to the global batch, and the column of each row's own partner."""

    image_to_text_BG: Tensor
    text_to_image_BG: Tensor
    own_B: Tensor
    """int64."""


def image_text_similarity(g_q_BQE: Tensor, g_t_GE: Tensor) -> Tensor:
    """max over queries of the cosine of each image with each text: [B, G] in [-1, 1]."""
    images, queries, width = g_q_BQE.shape
    # one matrix product over all queries of all images; the maximum of equation (10) is taken afterwards
    cosine_RG = g_q_BQE.reshape(-1, width) @ g_t_GE.T
    # `amax` shares the gradient among equal queries, where `max` would pick one by position
    return cosine_RG.view(images, queries, -1).amax(dim=1)


def global_similarity(model: MedUnifier, query_BQD: Tensor, text_cls_BD: Tensor) -> Similarity:
    """Project both sides, gather them over all ranks with gradient, and compare.

    Args:
        model: with the heads of ITC.
        query_BQD: f_q of the local images.
        text_cls_BD: f_t_cls of the local texts.
    """
    g_q = model.image_head(query_BQD)
    g_t = model.text_head(text_cls_BD)
    all_q, all_t = world.gather(g_q), world.gather(g_t)
    # rank r's rows follow those of the ranks before it, which is why all ranks must hold equally many
    own = torch.arange(len(g_t), device=g_t.device) + world.rank() * len(g_t)
    # bf16 resolves cosines to 0.004 only, which a temperature of 0.07 turns into 6 % of a logit
    with full_precision(g_t.device):
        # two blocks, [B, G] each way: this rank computes its rows and its columns of the G x G matrix alone
        return Similarity(image_text_similarity(g_q, all_t), image_text_similarity(all_q, g_t).T, own)
