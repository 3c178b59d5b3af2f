"""The table of token ids: which texts have the same hash, as whole texts and as the model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from medunifier_plugins.phantom.dataset import make_record

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts import token_table
from medunifier_cli.data.texts.report import digest, token_digest
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import DataConfig, TextConfig
from tests.hand_made import WORDS, HandMade, sample, write_shard

TOKENIZER = TextTokenizer.train([" ".join(WORDS)], 200)
NINE = "no pleural effusion no pneumothorax lungs are clear left"
TEXTS = (
    f"{NINE} heart enlarged",  # read whole with 13 tokens, [CLS] and [SEP] included
    f"{NINE} heart clear",
    f"{NINE} heart",
    NINE,
    f"{NINE.upper()}   Heart Enlarged",
    "effusion left",
    "effusion left \u03b1",  # the vocabulary lacks these two characters: [UNK]
    "effusion left \u03b2",
)


def open_source(folder: Path, max_tokens: int, texts: Sequence[str] = TEXTS) -> SplitSource:
    rows = (sample(i, sections={"findings": text}) for i, text in enumerate(texts))
    write_shard(folder / "train-000000.tar", rows)
    text = TextConfig(max_tokens=max_tokens)
    return SplitSource(Shards.open(folder, "train"), TOKENIZER, DataConfig(image_size=16), text, HandMade())


def groups(values: Sequence[object]) -> list[int]:
    """For each value the position of the first that equals it."""
    return [list(values).index(value) for value in values]


def tokens(source: SplitSource) -> list[tuple[int, ...]]:
    return [tuple(source.token_ids(i)) for i in range(len(source))]


def test_whole_texts_are_equal_by_their_words_and_read_texts_by_their_tokens(tmp_path: Path) -> None:
    source = open_source(tmp_path, 13)
    assert groups(source.digests.tolist()) == [0, 1, 2, 3, 0, 5, 6, 7]
    assert groups(source.token_digests.tolist()) == [0, 1, 2, 3, 0, 5, 6, 6]
    assert groups(tokens(source)) == [0, 1, 2, 3, 0, 5, 6, 6]


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [(12, [0, 0, 0, 3, 0, 5, 6, 6]), (11, [0, 0, 0, 0, 0, 5, 6, 6]), (4, [0, 0, 0, 0, 0, 5, 5, 5])],
)
def test_texts_that_differ_after_the_last_token_that_is_read_are_equal_to_the_model(
    tmp_path: Path, max_tokens: int, expected: list[int]
) -> None:
    source = open_source(tmp_path, max_tokens)
    assert groups(source.token_digests.tolist()) == expected
    assert groups(tokens(source)) == expected
    assert groups(source.digests.tolist()) == [0, 1, 2, 3, 0, 5, 6, 7], "whole texts are what they were"
    assert groups([source.sample(i).text_digest for i in range(8)]) == expected


def test_a_table_of_an_older_version_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(token_table, "VERSION", 1)
        open_source(tmp_path, 12)
    (path,) = (tmp_path / token_table.CACHE).iterdir()
    with h5py.File(path, "r+") as file:
        del file["token_digest"]  # what it had not got
    assert len(open_source(tmp_path, 12).token_digests) == 8


def test_both_hashes_part_the_demos_texts_alike() -> None:
    """Hashes are only compared with each other, so `demo` draws the negatives that it drew by whole texts."""
    texts = {
        split: [" ".join(make_record(0, split, i).sections["impression"].split()) for i in range(n)]
        for split, n in (("train", 3000), ("valid", 500), ("test", 500))
    }
    recipe = load_recipe("demo")
    tokenizer = TextTokenizer.train(texts["train"], recipe.text.vocabulary)
    for whole in texts.values():
        ids = tokenizer.encode_many(whole, recipe.text.max_tokens)
        hashes = [digest(text) for text in whole], [token_digest(np.array(one, np.int32)) for one in ids]
        first: list[dict[int, int]] = [{}, {}]
        parts = [
            [seen.setdefault(h, i) for i, h in enumerate(row)]
            for seen, row in zip(first, hashes, strict=True)
        ]
        assert parts[0] == parts[1]
        assert 1 < len(first[0]) < len(whole), "some are equal"
