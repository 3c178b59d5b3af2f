"""Packed texts and parts of a batch, against plain lists."""

import torch

from medunifier_cli.data.batch import Batch, PackedText, first_pairs, to_device

TEXTS = [[2, 7, 3], [2, 3], [2, 9, 9, 9, 3]]


def batch() -> Batch:
    numbers = torch.arange(3)
    images = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2)
    return Batch(["a", "b", "c"], images, PackedText.of(TEXTS), numbers, numbers + 10, numbers + 20)


def test_texts_are_packed_end_to_end() -> None:
    text = PackedText.of(TEXTS)
    assert text.ids_N.tolist() == [2, 7, 3, 2, 3, 2, 9, 9, 9, 3]
    assert text.lengths_B.tolist() == [3, 2, 5]
    assert text.ids_N.dtype == text.lengths_B.dtype == torch.int64


def test_no_texts_pack_to_integers_too() -> None:
    """`torch.tensor([])` alone would be float32, and an embedding refuses that."""
    assert PackedText.of([]).ids_N.dtype == PackedText.of([]).lengths_B.dtype == torch.int64


def test_lengths_and_positions_stay_on_the_cpu() -> None:
    moved = to_device(batch(), torch.device("meta"))
    assert {moved.image_B1HW.device.type, moved.text.ids_N.device.type, moved.label_B.device.type} == {"meta"}
    assert {moved.text.lengths_B.device.type, moved.position_B.device.type} == {"cpu"}


def test_first_pairs_cut_every_part() -> None:
    few = first_pairs(batch(), 2)
    assert few.keys == ["a", "b"]
    assert few.text.ids_N.tolist() == [2, 7, 3, 2, 3]
    assert [part.tolist() for part in (few.text.lengths_B, few.digest_B, few.label_B, few.position_B)] == [
        [3, 2], [0, 1], [10, 11], [20, 21],
    ]  # fmt: skip
    assert few.image_B1HW.shape == (2, 1, 2, 2)
