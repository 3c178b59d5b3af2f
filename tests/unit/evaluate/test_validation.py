"""Validation of pre-training: which pairs its losses contrast."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.evaluate.validation import Validation
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.objectives.pretraining import PretrainingLoss
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import tiny_recipe

TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)


@pytest.mark.parametrize(("micro_batch", "contrasted"), [(4, 4), (8, 8), (40, 8)])
def test_a_split_smaller_than_a_pass_is_a_batch_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], micro_batch: int, contrasted: int
) -> None:
    """Copies of the last pair would be its own negatives: of images that are alike ITC is ln of the pairs."""
    recipe = tiny_recipe("data.workers=0", "train.valid_pairs=0", "objectives.tig=0", "objectives.itg=0")
    write_split(tmp_path, "valid", 8, per_shard=8)
    source = SplitSource(Shards.open(tmp_path, "valid"), TOKENIZER, recipe.data, recipe.text, HandMade())
    model = MedUnifier(recipe, TOKENIZER.size)
    for parameter in model.image_head.parameters():
        torch.nn.init.zeros_(parameter)
    validation = Validation(recipe, source, micro_batch, tmp_path, torch.device("cpu"))
    found = validation.measure(PretrainingLoss(model, TOKENIZER.dec_id).eval(), 0)
    assert found["itc"] == pytest.approx(math.log(contrasted), abs=0.02)
    said = "8 pairs, fewer than a pass of training has (40); losses of validation contrast 8 pairs"
    assert (said in capsys.readouterr().err) == (micro_batch == 40)
