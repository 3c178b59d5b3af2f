"""The mean image of a part of a split, against a plain mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.evaluate.fidelity import mean_image
from medunifier_cli.recipe.schema import DataConfig, TextConfig
from tests import hand_made


@pytest.mark.parametrize("n", [1, 64, 65, 0, 500])
def test_mean_of_the_first_images(tmp_path: Path, n: int) -> None:
    hand_made.write_split(tmp_path, "test", 70, per_shard=40)
    tokenizer = TextTokenizer.train(hand_made.WORDS, 60)
    data = DataConfig(dataset="hand-made", image_size=16)
    source = SplitSource(Shards.open(tmp_path, "test"), tokenizer, data, TextConfig(), hand_made.HandMade())
    images = [source.sample(i).image_HW / 255.0 for i in range(min(n or 70, 70))]
    np.testing.assert_allclose(mean_image(source, n)[0, 0].numpy(), np.mean(images, axis=0), atol=1e-6)
