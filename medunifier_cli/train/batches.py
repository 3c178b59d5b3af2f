"""Move a batch to the device, and take the first pairs of one."""

from __future__ import annotations

import torch

from medunifier_cli.data.contract import Batch, PackedText


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to the device, but for the text lengths and the positions in the sample order."""
    # lengths decide shapes and positions seed random numbers: both are read on the CPU, which would otherwise
    # wait for a GPU in the middle of every step. The same object on the CPU: nothing changes it in place.
    if device.type == "cpu":
        return batch
    return Batch(
        batch.keys,
        # nothing on the CPU reads the copies, so it need not wait for them
        batch.image_B1HW.to(device, non_blocking=True),
        PackedText(batch.text.ids_N.to(device, non_blocking=True), batch.text.lengths_B),
        batch.digest_B.to(device, non_blocking=True),
        batch.label_B.to(device, non_blocking=True),
        batch.place_B,
    )


def first_pairs(batch: Batch, count: int) -> Batch:
    """The first `count` pairs of a batch."""
    # texts are packed end to end, so the first pairs' tokens are the first tokens
    lengths = batch.text.lengths_B[:count]
    return Batch(
        batch.keys[:count],
        batch.image_B1HW[:count],
        PackedText(batch.text.ids_N[: int(lengths.sum())], lengths),
        batch.digest_B[:count],
        batch.label_B[:count],
        batch.place_B[:count],
    )
