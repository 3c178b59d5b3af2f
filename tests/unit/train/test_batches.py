"""Parts of a batch, and which tensors move to a device."""

from __future__ import annotations

import torch
from medunifier_cli.train.batches import first_pairs, to_device

from tests.tiny import draw_batch, part_of


def test_first_pairs_are_the_pairs_themselves() -> None:
    batch = draw_batch(5)
    few, expected = first_pairs(batch, 2), part_of(batch, slice(0, 2))
    assert list(few.keys) == list(expected.keys)
    assert torch.equal(few.image_B1HW, expected.image_B1HW)
    assert torch.equal(few.text.ids_N, expected.text.ids_N)
    assert torch.equal(few.text.lengths_B, expected.text.lengths_B)
    assert torch.equal(few.digest_B, expected.digest_B)


def test_what_is_read_on_the_cpu_stays_there() -> None:
    batch = draw_batch(3)
    there = to_device(batch, torch.device("meta"))
    assert there.image_B1HW.is_meta
    assert there.text.ids_N.is_meta
    assert there.digest_B.is_meta
    assert there.text.lengths_B is batch.text.lengths_B
    assert to_device(batch, torch.device("cpu")) is batch
