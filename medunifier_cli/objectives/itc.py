"""Image-text contrast (paper, equations 8 to 12).

B local pairs, G = ranks * B pairs of the global batch, Q queries, E joint space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.objectives import Objective


def image_text_similarity(g_q_BQE: Tensor, g_t_GE: Tensor) -> Tensor:
    """max over queries of the cosine of each image with each text: [B, G] in [-1, 1]."""
    images, queries, width = g_q_BQE.shape
    every = g_q_BQE.reshape(-1, width) @ g_t_GE.T
    return every.view(images, queries, -1).amax(dim=1)


def itc_loss(
    image_to_text_BG: Tensor,
    text_to_image_BG: Tensor,
    own_B: Tensor,
    temperature: Tensor,
    smoothing: float = 0.0,
) -> Objective:
    """Bi-directional contrastive loss, mean over the local pairs.

    Args:
        image_to_text_BG: similarity of local images to all texts.
        text_to_image_BG: similarity of local texts to all images.
        own_B: int64, column of the row's own partner.
        temperature: scalar tau > 0.
        smoothing: label smoothing in [0, 1).
    """
    image_loss = F.cross_entropy(image_to_text_BG / temperature, own_B, label_smoothing=smoothing)
    text_loss = F.cross_entropy(text_to_image_BG / temperature, own_B, label_smoothing=smoothing)
    with torch.no_grad():
        right = (image_to_text_BG.argmax(1) == own_B).float() + (text_to_image_BG.argmax(1) == own_B).float()
    return Objective(0.5 * (image_loss + text_loss), {"itc_accuracy": right.mean() / 2})
