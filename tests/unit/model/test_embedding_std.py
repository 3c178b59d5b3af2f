"""`model.qformer.embedding_std`: how large random embeddings of words and positions are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medunifier_cli.model.medunifier import MedUnifier
from tests.tiny import VOCABULARY, tiny_recipe


def weights(std: float) -> dict[str, Tensor]:
    torch.manual_seed(0)
    recipe = tiny_recipe(
        f"model.qformer.embedding_std={std}", "model.qformer.width=128", "text.max_tokens=64"
    )
    return MedUnifier(recipe, VOCABULARY).state_dict()


def test_words_have_it_and_positions_a_fifth_and_matrices_keep_theirs() -> None:
    before, after = weights(0), weights(0.3)
    assert float(after["qformer.word.weight"].std()) == pytest.approx(0.3, rel=0.05)
    assert float(after["qformer.position.weight"].std()) == pytest.approx(0.06, rel=0.05)
    assert float(before["qformer.word.weight"].std()) == pytest.approx(0.02, rel=0.05)
    for name in ("qformer.blocks.0.attention.qkv.weight", "qformer.blocks.0.ffn_text.up.weight"):
        assert torch.equal(before[name], after[name]), name
