"""How close reconstructions come to their images: PSNR, and the mean image as its baseline."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.data.loader import SplitSource, eval_batches

BATCH = 64
"""Samples read at a time; changes no result."""


def psnr(image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, [B]; the peak is 1.

    Args:
        image_BCHW: values in [0, 1].
        other_BCHW: clamped to [0, 1] first, as a picture of it would be.
    """
    error_B = (image_BCHW - other_BCHW.clamp(0, 1)).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error_B.clamp(min=1e-12))  # equal images get 120 dB and not infinity


def mean_image(source: SplitSource, n: int = 0) -> Tensor:
    """Mean of the images of a split, [1, 1, H, W] in [0, 1].

    Args:
        n: only the first n images; 0 for all.
    """
    n = min(n or len(source), len(source))
    total = np.zeros((source.data.image_size,) * 2)
    for batch, mask_B in eval_batches(
        source, batch_size=BATCH, rank=0, world=1, workers=0, batches=-(-n // BATCH)
    ):
        mask_B &= batch.position_B < n
        total += batch.image_B1HW[mask_B].double().sum(dim=(0, 1)).numpy()
    return torch.from_numpy(total / n / 255.0).float()[None, None]
