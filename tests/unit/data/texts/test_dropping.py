"""`text.drop`: tokens that the uni-modal pass does not see in training."""

from __future__ import annotations

import pytest
import torch

from medunifier_cli.data.batch import PackedText
from medunifier_cli.data.texts.dropping import drop_tokens

TEXTS = [[2, *range(10, 60), 3], [2, 3], [2, 7, 3]]
PACKED = PackedText.of(TEXTS)


def texts_of(text: PackedText) -> list[list[int]]:
    return [part.tolist() for part in torch.split(text.ids_N, text.lengths_B.tolist())]


def dropped(positions: list[int], share: float = 0.3, seed: int = 0) -> list[list[int]]:
    return texts_of(drop_tokens(PACKED, positions, share, seed))


def test_about_the_share_is_left_out_in_order_and_the_ends_stay() -> None:
    kept = [dropped([position, 0, 1])[0] for position in range(200)]
    assert all(text[0] == 2 and text[-1] == 3 for text in kept)
    assert all(text == sorted(text[1:-1]) or text[1:-1] == sorted(text[1:-1]) for text in kept)
    assert sum(len(text) - 2 for text in kept) / (200 * 50) == pytest.approx(0.7, abs=0.02)
    each = [sum(token in text for text in kept) / 200 for token in range(10, 60)]
    assert min(each) > 0.5
    assert max(each) < 0.9, "every token is left out now and then"


def test_texts_without_words_stay_texts() -> None:
    assert dropped([0, 5, 9], 0.9)[1] == [2, 3]


def test_what_is_left_out_depends_on_seed_and_position_alone() -> None:
    alone = texts_of(drop_tokens(PackedText.of(TEXTS[:1]), [7], 0.3, 0))[0]
    assert dropped([7, 1, 2])[0] == alone
    assert dropped([8, 1, 2])[0] != alone
    assert dropped([7, 1, 2], seed=1)[0] != alone
