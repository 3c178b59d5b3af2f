"""Image-text contrast (paper, equations 8 to 12).

B local pairs, G = ranks * B pairs of the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.objectives.objective import EncodedBatch, LossAndMonitors, Objective

TEMPERATURE_RANGE = (0.01, 0.5)
"""The learnable temperature is clamped to this: near 0 the softmax is one-hot and its gradient vanishes."""


def itc_loss(
    image_to_text_BG: Tensor,
    text_to_image_BG: Tensor,
    own_B: Tensor,
    temperature: Tensor,
    smoothing: float = 0.0,
) -> LossAndMonitors:
    """Bi-directional contrastive loss, mean over the local pairs.

    Args:
        image_to_text_BG: similarity of local images to all texts.
        text_to_image_BG: similarity of local texts to all images.
        own_B: int64, column of the row's own partner.
        temperature: scalar tau > 0.
        smoothing: label smoothing in [0, 1).
    """
    # Pairs of equal texts stay negatives of each other here, as in the paper, unlike in ITM: the target is
    # one column. So the reachable loss is above 0 where normal reports repeat, and the accuracy below 1.
    image_loss = F.cross_entropy(image_to_text_BG / temperature, own_B, label_smoothing=smoothing)
    text_loss = F.cross_entropy(text_to_image_BG / temperature, own_B, label_smoothing=smoothing)
    with torch.no_grad():
        hits = (image_to_text_BG.argmax(1) == own_B).float() + (text_to_image_BG.argmax(1) == own_B).float()
    return LossAndMonitors(0.5 * (image_loss + text_loss), {"itc_accuracy": hits.mean() / 2})


class ImageTextContrast(Objective):
    """Features of all ranks are gathered with gradient, so every pair contrasts with the global batch."""

    name = "itc"
    title = "ITC loss"
    monitors: ClassVar[Mapping[str, str]] = {
        "itc_accuracy": "ITC accuracy in the batch",
        "temperature": "ITC temperature",
    }
    reads_text_cls = True
    # f_q passes through every layer, and the text's first token through the text's feed-forward networks
    reaches_every_weight = True

    def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
        """Mean over the local pairs."""
        model = encoded.model
        with torch.no_grad():  # before it is used: the last optimiser step may have left the range
            model.temperature.clamp_(*TEMPERATURE_RANGE)
        # computed here if nobody asked before, and kept: ITM reads the same one
        similarity = encoded.similarity
        loss, monitors = itc_loss(
            similarity.image_to_text_BG, similarity.text_to_image_BG, similarity.own_B,
            model.temperature, model.recipe.objectives.itc_smoothing,
        )  # fmt: skip
        return LossAndMonitors(loss, {**monitors, "temperature": model.temperature.detach()})
