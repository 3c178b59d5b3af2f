"""The tokenizer of a run: made once, whole or absent, and the one that the run was trained with."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.checkpoint.run_tokenizer import tokenizer_of
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import CONFIG, FINGERPRINT, VOCABULARY, TextTokenizer
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.plugin_index import load_dataset
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.loop import fit
from tests.folders import ROOT
from tests.hand_made import write_split
from tests.tiny import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> PretrainRecipe:
    shards = write_split(tmp_path / "shards", "train", 8, per_shard=8)
    return tiny_recipe(
        f"data.shards={shards}", "data.dataset=phantom", "data.sections=[findings]", "text.tokenizer=train",
        "text.vocabulary=60", "data.workers=0", "train.steps=1", "train.global_batch=4",
        "train.micro_batch=4",
    )  # fmt: skip


def stage_on(recipe: PretrainRecipe, run: Run) -> Pretraining:
    tokenizer = tokenizer_of(recipe, run)
    opened = Shards.open(Path(recipe.data.shards), "train")
    plugin = load_dataset("phantom")
    source = SplitSource(opened, tokenizer, recipe.data, recipe.text, plugin)
    return Pretraining(recipe, run, source, None, tokenizer, torch.device("cpu"))


@pytest.fixture
def run(tmp_path: Path, recipe: PretrainRecipe, accelerator: Accelerator) -> Run:
    """A finished run of one step."""
    run = Run(tmp_path / "run")
    run.begin(recipe, {}, ["mu", "pretrain"])
    fit(stage_on(recipe, run), run, accelerator, recipe.train, recipe.optim)
    return run


def names(run: Run) -> list[str]:
    return sorted(path.name for path in run.tokenizer.iterdir())


def test_what_an_earlier_version_left_half_written_is_made_anew(
    tmp_path: Path, recipe: PretrainRecipe
) -> None:
    run = Run(tmp_path / "run")
    whole = tokenizer_of(recipe, run).fingerprint
    for name in (CONFIG, FINGERPRINT):  # as it was killed between its two files
        (run.tokenizer / name).unlink()
    content = (run.tokenizer / VOCABULARY).read_bytes()
    (run.tokenizer / VOCABULARY).write_bytes(content[: len(content) // 2])
    assert tokenizer_of(recipe, run).fingerprint == whole
    assert names(run) == sorted([CONFIG, FINGERPRINT, VOCABULARY])


def test_the_checkpoint_knows_its_tokenizer(
    run: Run, recipe: PretrainRecipe, accelerator: Accelerator
) -> None:
    assert restore(run).tokenizer.fingerprint == tokenizer_of(recipe, run).fingerprint
    lines = (run.tokenizer / VOCABULARY).read_text().split("\n")
    lines[10], lines[11] = lines[11], lines[10]
    (run.tokenizer / VOCABULARY).write_text("\n".join(lines))
    with pytest.raises(DataError, match="not the tokenizer that was written there; put it back, or delete"):
        restore(run)
    # even if its own hash fits it, or an earlier version wrote none
    for own in (TextTokenizer(lines[:-1]).fingerprint, None):
        if own:
            (run.tokenizer / FINGERPRINT).write_text(own + "\n")
        else:
            (run.tokenizer / FINGERPRINT).unlink()
        with pytest.raises(CheckpointError, match="not the tokenizer that this run was trained with"):
            restore(run)
        with pytest.raises(CheckpointError, match="tokenizer differs from what this run was trained with"):
            fit(stage_on(recipe, run), run, accelerator, recipe.train, recipe.optim)


def test_a_lost_tokenizer_is_made_anew_by_the_same_command_alone(run: Run, recipe: PretrainRecipe) -> None:
    """What the message about a damaged one advises."""
    before = tokenizer_of(recipe, run).fingerprint
    shutil.rmtree(run.tokenizer)
    with pytest.raises(CheckpointError, match=r"tokenizer: missing; .* run the same `mu pretrain` again"):
        restore(run)
    assert tokenizer_of(recipe, run).fingerprint == before
    assert restore(run).tokenizer.fingerprint == before


def test_settings_that_a_trained_run_of_an_earlier_version_lost_are_missed(
    run: Run, recipe: PretrainRecipe
) -> None:
    (run.tokenizer / FINGERPRINT).unlink()
    assert tokenizer_of(recipe, run).fingerprint == restore(run).tokenizer.fingerprint
    (run.tokenizer / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: missing; put it back"):
        tokenizer_of(recipe, run)


def test_a_checkpoint_without_the_hash_is_read(run: Run) -> None:
    """Of an earlier version."""
    last = store.newest(run.checkpoints)
    assert last is not None
    stage = {name: value for name, value in last.facts["stage"].items() if name != "tokenizer"}
    store.save(run.checkpoints, store.Checkpoint(2, last.tensors, {**last.facts, "stage": stage}), keep=1)
    assert restore(run).step == 2


WRITER = """
import sys
from pathlib import Path
from medunifier_cli.data.texts.tokenizer import TextTokenizer
fixed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
tokenizer = TextTokenizer([*fixed, *(f"word{i}" for i in range(200_000))], lowercase=False)
print("ready", flush=True)
for _ in range(1000):
    tokenizer.save(Path(sys.argv[1]) / "tokenizer")
"""


@pytest.mark.slow
def test_forty_kills_while_it_is_written(tmp_path: Path) -> None:
    draw, found = random.Random(0), 0
    for number in range(40):
        home = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(home)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (home / "tokenizer").exists():
            tokenizer = TextTokenizer.load(str(home / "tokenizer"))
            assert (tokenizer.size, tokenizer.encode("Word7", 5)[1:-1]) == (200_006, [1]), "cased"
            found += 1
        if home.exists():
            Run(home).sweep()
            assert [path.name for path in home.iterdir()] in ([], ["tokenizer"])
    assert found > 5
