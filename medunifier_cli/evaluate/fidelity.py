"""How close reconstructions come to their images: PSNR, and the mean image as its baseline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.data.batch import Batch
from medunifier_cli.data.loader import SplitSource, eval_batches, eval_workers
from medunifier_cli.distributed import world

BATCH = 64
"""Samples per forward pass and rank; changes no result beyond rounding."""
MEAN_OF = 10_000
"""Training images of which the mean image is made, at most: it is off by about a hundredth of the deviation
between images, and to decode 243,300 of them takes one core five minutes."""


def psnr(image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, [B]; the peak is 1.

    Args:
        image_BCHW: values in [0, 1].
        other_BCHW: clamped to [0, 1] first, as a picture of it would be.
    """
    error_B = (image_BCHW - other_BCHW.clamp(0, 1)).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error_B.clamp(min=1e-12))  # equal images get 120 dB and not infinity


def mean_image(source: SplitSource, n: int = 0, device: torch.device | None = None) -> Tensor:
    """Mean of the images of a split, [1, 1, H, W] in [0, 1]; of a large one, of `MEAN_OF` evenly spaced.

    All ranks call it and share the work.

    Args:
        n: only the first n images; 0 for all.
        device: where ranks exchange tensors; by default the CPU.
    """
    n = min(n or len(source), len(source))
    chosen = min(n, MEAN_OF)
    part = source.with_features(None)
    part.rows = source.rows[np.arange(chosen) * n // chosen]
    total = torch.zeros((source.data.image_size,) * 2, dtype=torch.float64)
    for batch, mask_B in batches_of_rank(part):
        total += batch.image_B1HW[mask_B].double().sum(dim=(0, 1))
    return (of_all_ranks(total, device) / chosen / 255.0).float()[None, None]


def of_how_many(source: SplitSource) -> str:
    """What a protocol says of how many images `mean_image` takes; nothing where it takes all."""
    return f" (of {MEAN_OF:,} of them)" if len(source) > MEAN_OF else ""


def batches_of_rank(source: SplitSource) -> Iterator[tuple[Batch, Tensor]]:
    """This rank's batches of a split, each with its mask of rows that are no repetition."""
    count = -(-len(source) // (BATCH * world.size()))
    return eval_batches(
        source, batch_size=BATCH, rank=world.rank(), world=world.size(),
        workers=eval_workers(source.data.workers, count),
    )  # fmt: skip


def of_all_ranks(mine: Tensor, device: torch.device | None) -> Tensor:
    """The sum over ranks, on the CPU: the whole, where each has filled in its part and left 0 elsewhere."""
    return world.all_sum(mine.to(device or mine.device)).cpu()
