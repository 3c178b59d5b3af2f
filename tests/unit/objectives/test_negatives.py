"""Negatives of texts that the model reads alike: neither ITM nor its measure takes one for the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.evaluate.pair_scores import other_texts
from medunifier_cli.objectives.itm import draw_negatives, draw_weights
from medunifier_cli.objectives.similarity import Similarity
from medunifier_cli.recipe.schema import DataConfig, TextConfig
from tests.hand_made import WORDS, HandMade, sample, write_shard
from tests.tiny import tiny_recipe

START = "no pleural effusion no pneumothorax lungs are clear left heart"
TEXTS = [START + " enlarged", START + " clear", START, "effusion left", "heart enlarged"]
ALIKE = {0, 1, 2}
"""Equal up to the last of twelve tokens, [CLS] and [SEP] included."""


@pytest.fixture
def source(tmp_path: Path) -> SplitSource:
    rows = (sample(i, sections={"findings": text}) for i, text in enumerate(TEXTS))
    write_shard(tmp_path / "train-000000.tar", rows)
    tokenizer = TextTokenizer.train([" ".join(WORDS)], 200)
    shards = Shards.open(tmp_path, "train")
    return SplitSource(shards, tokenizer, DataConfig(image_size=16), TextConfig(max_tokens=12), HandMade())


@pytest.mark.parametrize("negatives", ["hard", "random"])
def test_texts_read_alike_are_never_each_others_negatives(source: SplitSource, negatives: str) -> None:
    recipe = tiny_recipe(f"objectives.itm_negatives={negatives}")
    n = len(TEXTS)
    # each other's hardest negatives: the first three are as similar as can be
    close = torch.full((n, n), -1.0)
    close[:3, :3] = 1.0
    similarity = Similarity(close, close, torch.arange(n))
    drawn: dict[int, set[int]] = {i: set() for i in range(n)}
    for first in range(0, 40 * n, n):
        batch = source.read(np.arange(n), np.arange(first, first + n), source.empty(n))
        weights = draw_weights(batch, batch.digest_B, similarity, torch.tensor(0.5), recipe)
        for picks in draw_negatives(weights, batch.position_B.tolist(), recipe.train.seed):
            for i, pick in enumerate(picks.tolist()):
                drawn[i].add(pick)
    assert all(drawn[i] == {3, 4} for i in ALIKE)
    assert drawn[3] == {0, 1, 2, 4}
    assert drawn[4] == {0, 1, 2, 3}


def test_the_measure_of_itm_asks_about_texts_that_are_read_otherwise(source: SplitSource) -> None:
    for seed in range(20):
        chosen = other_texts(source, seed).tolist()
        assert all(chosen[i] in {3, 4} for i in ALIKE)
        assert all(chosen[i] != i for i in range(len(TEXTS)))
