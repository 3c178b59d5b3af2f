"""A run that has begun needs the BERT it started from no more; a new one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForMaskedLM

from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import CheckpointError, MissingWeightsError
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.loop import fit
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import tiny_recipe

TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A small BERT as transformers writes it, of the tokenizer's vocabulary without [DEC]."""
    config = BertConfig(
        vocab_size=TOKENIZER.size - 1, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(1)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


Stage = Callable[[PretrainRecipe, Run], Pretraining]


@pytest.fixture
def stage_of(tmp_path: Path) -> Stage:
    """The pre-training stage in a run folder with recipe and tokenizer, on eight pairs."""
    shards = write_split(tmp_path / "shards", "train", 8, per_shard=8)

    def stage(recipe: PretrainRecipe, run: Run) -> Pretraining:
        run.begin(recipe, {}, ["mu", "pretrain"])
        TOKENIZER.save(run.tokenizer)
        opened = Shards.open(shards, "train")
        source = SplitSource(opened, TOKENIZER, recipe.data, recipe.text, HandMade())
        return Pretraining(recipe, run, source, None, TOKENIZER, torch.device("cpu"))

    return stage


def recipe_from(bert: Path, *overrides: str) -> PretrainRecipe:
    weights = ("data.workers=0", "train.steps=1", f"model.qformer.weights={bert}")
    return tiny_recipe(*weights, "train.global_batch=4", "train.micro_batch=4", *overrides)


def train(stage: Pretraining, recipe: PretrainRecipe, run: Run, accelerator: Accelerator) -> int:
    return fit(stage, run, accelerator, recipe.train, recipe.optim)


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_a_finished_run_is_restored_without_its_bert(
    tmp_path: Path, bert: Path, stage_of: Stage, accelerator: Accelerator, frozen: str
) -> None:
    recipe, run = recipe_from(bert, f"model.vit.frozen={frozen}"), Run(tmp_path / "run")
    stage = stage_of(recipe, run)
    assert train(stage, recipe, run, accelerator) == 1
    shutil.rmtree(bert)
    restored = restore(run, torch.device("cpu"))
    assert restored.step == 1
    assert not restored.model.training
    expected = stage.model.state_dict()
    assert restored.model.state_dict().keys() == expected.keys()
    for name, tensor in restored.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_new_run_starts_from_its_bert(tmp_path: Path, bert: Path, stage_of: Stage) -> None:
    stage = stage_of(recipe_from(bert), Run(tmp_path / "run"))
    stage.start()
    theirs = BertForMaskedLM.from_pretrained(bert)
    words = stage.model.qformer.word.weight
    torch.testing.assert_close(words[:-1], theirs.bert.embeddings.word_embeddings.weight)
    assert len(words) == TOKENIZER.size
    listed = json.loads((tmp_path / "run" / "start-weights.json").read_text(encoding="utf-8"))
    assert listed["mapped"]["bert.embeddings.word_embeddings.weight"] == ["qformer.word.weight"]
    assert "qformer.query_tokens" in listed["new"]


def test_a_new_run_without_its_bert_is_one_line(
    tmp_path: Path, bert: Path, stage_of: Stage, accelerator: Accelerator
) -> None:
    shutil.rmtree(bert)
    recipe, run = recipe_from(bert), Run(tmp_path / "run")
    stage = stage_of(recipe, run)
    with pytest.raises(MissingWeightsError, match="neither a folder, a file nor a hub name") as error:
        train(stage, recipe, run, accelerator)
    assert "\n" not in str(error.value)
    assert not run.checkpoints.exists()


def test_a_begun_run_is_resumed_without_its_bert(
    tmp_path: Path, bert: Path, stage_of: Stage, accelerator: Accelerator
) -> None:
    recipe, run = recipe_from(bert), Run(tmp_path / "run")
    stage = stage_of(recipe, run)
    stage.steps = 1
    train(stage, recipe, run, accelerator)
    shutil.rmtree(bert)
    resumed = stage_of(recipe, run)
    resumed.steps = 2
    assert train(resumed, recipe, run, accelerator) == 1
    assert restore(run, torch.device("cpu")).step == 2


def test_a_folder_without_a_checkpoint_is_one_line(tmp_path: Path, bert: Path, stage_of: Stage) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"not a run, it has no recipe\.yaml"):
        restore(run)
    stage_of(recipe_from(bert), run)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        restore(run)
