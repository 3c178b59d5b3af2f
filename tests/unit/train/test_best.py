"""The best validation: kept in every checkpoint, restored by whatever follows, and the end of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.best import Best, best_of, without_best
from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import CheckpointError, RecipeError, Stopped
from medunifier_cli.evaluate.validation import Validation
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.loop import fit
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import tiny_recipe

TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)
CPU = torch.device("cpu")
RECALL = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}
"""Step -> what each validation is made to say."""


def weights(value: float) -> dict[str, Tensor]:
    return {"a": torch.tensor([value])}


def test_the_first_of_equal_ones_is_kept_and_later_training_does_not_reach_it() -> None:
    best, changing = Best(), weights(1.0)
    best.offer(0.5, 10, changing)
    changing["a"].fill_(2.0)
    best.offer(0.5, 20, weights(3.0))
    assert (best.value, best.step, best.since) == (0.5, 10, 1)
    assert best.weights["a"].tolist() == [1.0]
    best.offer(float("nan"), 30, weights(4.0))
    assert (best.step, best.since) == (10, 2)
    best.offer(0.6, 40, weights(5.0))
    assert (best.step, best.since) == (40, 0)


def test_a_score_below_nothing_is_the_best_of_one() -> None:
    best = Best()
    best.offer(float("nan"), 5, weights(0.0))
    assert not best.step
    best.offer(-7.5, 10, weights(1.0))  # a loss, whose sign is turned
    assert (best.value, best.step) == (-7.5, 10)


def test_patience_counts_validations_and_none_is_for_ever() -> None:
    best, endless = Best(patience=2), Best()
    for step in range(1, 4):
        assert not best.enough
        for one in (best, endless):
            one.offer(1.0, step, weights(1.0))
    assert best.enough
    assert not endless.enough


def test_a_checkpoint_gives_back_what_it_holds_and_that_of_an_older_version() -> None:
    best, other = Best(), Best()
    best.offer(0.5, 10, weights(1.0))
    best.offer(0.4, 20, weights(2.0))
    held = {**weights(9.0), **best.tensors()}
    other.load(held)
    assert (other.value, other.step, other.since) == (0.5, 10, 1)
    assert torch.equal(other.weights["a"], best.weights["a"])
    assert list(without_best(held)) == ["a"]
    other.load({**held, "best": torch.tensor([0.5, 10.0])})
    assert (other.value, other.step, other.since) == (0.5, 10, 0)
    assert best_of(weights(1.0)) is None
    assert best_of({**weights(9.0), **Best().tensors()}) is None


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, dict[str, Tensor]]]:
    """Validations say what `RECALL` has for the step; weights of each step."""
    seen: dict[int, dict[str, Tensor]] = {}

    def measure(_: Validation, module: Any, step: int, watch: Any) -> dict[str, float]:
        list(watch(range(2)))
        seen[step] = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
        return {"total": 3.0 - RECALL[step], "recall@10": RECALL[step]}

    monkeypatch.setattr(Validation, "measure", measure)
    return seen


def stage_in(folder: Path, *settings: str) -> tuple[Pretraining, Run, PretrainRecipe]:
    recipe = tiny_recipe(
        "data.workers=0", "train.steps=5", "train.valid_every=1", "train.precision=no", "train.keep=1",
        "train.checkpoint_every=1", "train.tensorboard=false", "optim.peak_lr=0.01", *settings,
    )  # fmt: skip
    if not (folder / "shards").exists():
        write_split(folder / "shards", "train", 8, per_shard=8)
    shards = Shards.open(folder / "shards", "train")
    source = SplitSource(shards, TOKENIZER, recipe.data, recipe.text, HandMade())
    run = Run(folder / "run")
    run.begin(recipe, {}, ["mu", "pretrain"])
    if not run.tokenizer.exists():
        TOKENIZER.save(run.tokenizer)
    return Pretraining(recipe, run, source, source, TOKENIZER, CPU), run, recipe


def train(folder: Path, *settings: str) -> tuple[int, Run]:
    stage, run, recipe = stage_in(folder, *settings)
    return fit(stage, run, accelerator_of(recipe.train, run.folder), recipe.train, recipe.optim), run


@pytest.mark.parametrize("key", ["recall@10", "loss"])
def test_what_follows_uses_the_best_weights_and_says_their_step(
    tmp_path: Path, told: dict[int, dict[str, Tensor]], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done, run = train(tmp_path, f"train.best={key}", "train.patience=2")
    assert done == 4, "step 2 is the best, and steps 3 and 4 are not better"
    assert store.steps(run.checkpoints) == [4]
    capsys.readouterr()
    restored = restore(run, CPU)
    assert restored.step == 2
    assert f"weights of step 2 of 4, the best by {key}" in capsys.readouterr().err
    state = restored.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in told[2].items())
    assert not all(torch.equal(tensor, state[name]) for name, tensor in told[4].items())
    assert train(tmp_path, f"train.best={key}", "train.patience=2")[0] == 0


def test_without_the_key_the_last_weights_are_restored_and_held_once(
    tmp_path: Path, told: dict[int, dict[str, Tensor]]
) -> None:
    done, run = train(tmp_path)
    assert done == 5
    restored = restore(run, CPU)
    assert restored.step == 5
    assert all(torch.equal(t, told[5][name]) for name, t in restored.model.state_dict().items())
    newest = store.newest(run.checkpoints)
    assert newest is not None
    assert not any(name.startswith("best") for name in newest.tensors["model"])


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stopped_run_ends_as_one_that_was_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    settings = ("train.best=recall@10", "train.patience=2")
    _, whole = train(tmp_path / "whole", *settings)
    with monkeypatch.context() as patch:
        step_of = Pretraining.step

        def signalled(stage: Pretraining, module: Any, batch: Any, step: int, micro: int) -> Any:
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step_of(stage, module, batch, step, micro)

        patch.setattr(Pretraining, "step", signalled)
        with pytest.raises(Stopped):
            train(tmp_path / "parts", *settings)
    _, parts = train(tmp_path / "parts", *settings)
    name = "checkpoints/step-00000004/model.safetensors"
    assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()


def test_a_choice_of_other_pairs_is_another_recipe_and_more_patience_is_not(tmp_path: Path) -> None:
    settings = ("train.best=recall@10", "train.patience=2")
    train(tmp_path, *settings)
    assert train(tmp_path, "train.best=recall@10", "train.patience=9")[0] == 1
    with pytest.raises(CheckpointError, match=r"train\.valid_pairs was 500, now 400"):
        train(tmp_path, *settings, "train.valid_pairs=400")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["train.patience=2"], r"train\.patience.*needs train\.best"),
        (["train.best=loss", "data.valid="], r"train\.best.*needs data\.valid"),
        (["train.best=recall@10", "train.valid_pairs=10"], r"20 train\.valid_pairs, not 10"),
        (["train.best=recall@10", "objectives.itc=0", "objectives.itm=0"], r"needs objectives\.itc"),
        (["train.best=bleu"], r"train\.best"),
    ],
)
def test_recipes_that_ask_for_what_is_not_measured(settings: list[str], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        tiny_recipe(*settings)
