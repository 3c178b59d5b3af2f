"""Batches on their way to the model."""

from __future__ import annotations

import torch

from medunifier_cli.data.contract import Batch, PackedText


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors that are computed with go to the device; lengths and places stay on the CPU."""
    if device.type == "cpu":
        return batch
    return Batch(
        batch.keys,
        batch.image_B1HW.to(device, non_blocking=True),
        PackedText(batch.text.ids_N.to(device, non_blocking=True), batch.text.lengths_B),
        batch.digest_B.to(device, non_blocking=True),
        batch.label_B.to(device, non_blocking=True),
        batch.place_B,
    )


def first_pairs(batch: Batch, count: int) -> Batch:
    """The first `count` pairs of a batch."""
    lengths = batch.text.lengths_B[:count]
    return Batch(
        batch.keys[:count],
        batch.image_B1HW[:count],
        PackedText(batch.text.ids_N[: int(lengths.sum())], lengths),
        batch.digest_B[:count],
        batch.label_B[:count],
        batch.place_B[:count],
    )
