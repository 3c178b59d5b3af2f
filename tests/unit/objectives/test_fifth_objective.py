"""An objective added from outside is trained, logged, shown, saved and restored, without a list to extend.

All of it is in this file: a weight in the recipe, the objective with a head of its own, and one entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from medunifier_cli.checkpoint import store
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.objectives import pretraining
from medunifier_cli.objectives.objective import EncodedBatch, LossAndMonitors, Objective
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import ObjectivesConfig, PretrainRecipe, Weight
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.loop import fit
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import SMALL

STEPS = 3


@dataclass(frozen=True)
class FiveObjectives(ObjectivesConfig):
    """The paper's four weights and one more."""

    itl: Weight = 0.0
    """Image-text length."""


@dataclass(frozen=True)
class FiveRecipe(PretrainRecipe):
    """A pre-training recipe with five weights."""

    objectives: FiveObjectives = field(default_factory=FiveObjectives)


class ImageTextLength(Objective):
    """How long is the report of this image? Queries -> number of tokens, on a logarithmic scale."""

    name = "itl"
    title = "ITL loss"
    monitors: ClassVar[Mapping[str, str]] = {"itl_ratio": "ITL predicted over true length"}

    def extend(self, model: MedUnifier) -> None:
        model.length_head = nn.Linear(model.recipe.model.qformer.width, 1)

    def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
        log_length = encoded.batch.text.lengths_B.to(encoded.image_BCHW.device).float().log()
        predicted = encoded.model.length_head(encoded.memory.query_BQD.mean(dim=1))[:, 0]
        monitors = {"itl_ratio": (predicted - log_length).exp().mean(), "itl_target": log_length.mean()}
        return LossAndMonitors(
            F.mse_loss(predicted, log_length), {name: value.detach() for name, value in monitors.items()}
        )


@pytest.fixture(autouse=True)
def entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one entry."""
    monkeypatch.setattr(pretraining, "OBJECTIVES", [*pretraining.OBJECTIVES, ImageTextLength()])


def recipe_with(*overrides: str) -> FiveRecipe:
    loop = (
        "data.workers=0",
        "train.global_batch=4",
        "train.micro_batch=4",
        "train.log_every=1",
        "optim.warmup=0.0",
    )
    recipe: FiveRecipe = load_recipe("full", [*SMALL, *loop, *overrides], schema=FiveRecipe)
    return recipe


Stage = Callable[[FiveRecipe, Run], Pretraining]


@pytest.fixture
def stage_of(tmp_path: Path) -> Stage:
    """The pre-training stage itself, on twelve pairs."""
    shards = write_split(tmp_path / "shards", "train", 12, per_shard=12)
    tokenizer = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)

    def stage(recipe: FiveRecipe, run: Run) -> Pretraining:
        opened = Shards.open(shards, "train")
        source = SplitSource(opened, tokenizer, recipe.data, recipe.text, HandMade())
        return Pretraining(recipe, run, source, source, tokenizer, torch.device("cpu"))

    return stage


def train(stage: Pretraining, recipe: FiveRecipe, run: Run, accelerator: Accelerator) -> int:
    run.folder.mkdir(exist_ok=True)
    return fit(stage, run, accelerator, recipe.train, recipe.optim)


def log_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.log.read_text().splitlines()]


def head_of(stage: Pretraining) -> dict[str, Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in stage.model.state_dict().items()
        if name.startswith("length_head.")
    }


def test_it_is_trained_logged_and_shown(
    tmp_path: Path, stage_of: Stage, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = (
        recipe_with("objectives.itl=0.5", f"train.steps={STEPS}", "train.tensorboard=false"),
        Run(tmp_path / "run"),
    )
    stage = stage_of(recipe, run)
    before = head_of(stage)
    assert set(before) == {"length_head.weight", "length_head.bias"}
    assert train(stage, recipe, run, accelerator) == STEPS

    after = head_of(stage)
    # the bias has no weight decay: a gradient has moved it
    assert not any(torch.equal(before[name], after[name]) for name in before)
    log = log_of(run)
    assert [line["event"] for line in log] == [*["train"] * STEPS, "valid"]
    for line in log:
        weights = {"itc": 1.0, "itm": 1.0, "itg": 1.0, "tig": 1.0, "itl": 0.5}
        assert line["total"] == pytest.approx(sum(weight * line[name] for name, weight in weights.items()))
        assert {"itl_ratio", "itl_target"} <= line.keys()
    shown = capsys.readouterr().err.splitlines()
    assert f"  itl {log[0]['itl']:.3f}" in shown[0]
    assert f"  itl {log[-1]['itl']:.3f}" in shown[-1], "validation too"
    assert not any("itl_" in line for line in shown), "monitors are in the log alone"


def test_it_is_saved_restored_and_resumed(tmp_path: Path, stage_of: Stage, accelerator: Accelerator) -> None:
    run, first = Run(tmp_path / "run"), recipe_with("objectives.itl=0.5", f"train.steps={STEPS}")
    stage = stage_of(first, run)
    train(stage, first, run, accelerator)

    checkpoint = store.newest(run.checkpoints)
    assert checkpoint is not None
    restored = pretraining.build_model(first, len(stage.model.qformer.word.weight))
    restored.load_state_dict(dict(checkpoint.tensors["model"]))
    for name, tensor in head_of(stage).items():
        assert torch.equal(restored.state_dict()[name], tensor)

    longer = recipe_with("objectives.itl=0.5", f"train.steps={STEPS + 1}")
    resumed = stage_of(longer, run)
    assert not torch.equal(head_of(resumed)["length_head.weight"], head_of(stage)["length_head.weight"])
    resumed.load_tensors(checkpoint.tensors["model"])
    assert torch.equal(head_of(resumed)["length_head.weight"], head_of(stage)["length_head.weight"])
    assert train(stage_of(longer, run), longer, run, accelerator) == 1, "its optimiser state is there as well"


def test_the_other_objectives_start_from_the_same_weights(tmp_path: Path, stage_of: Stage) -> None:
    run = Run(tmp_path / "run")
    four, five = (stage_of(recipe_with(f"objectives.itl={weight}"), run) for weight in (0.0, 0.5))
    others = four.model.state_dict()
    assert five.model.state_dict().keys() - others.keys() == {"length_head.weight", "length_head.bias"}
    assert all(torch.equal(five.model.state_dict()[name], tensor) for name, tensor in others.items())


def test_a_weight_of_0_leaves_it_out(tmp_path: Path, stage_of: Stage, accelerator: Accelerator) -> None:
    recipe, run = recipe_with(f"train.steps={STEPS}"), Run(tmp_path / "run")
    stage = stage_of(recipe, run)
    assert not hasattr(stage.model, "length_head")
    assert stage.shown[:5] == ("total", "itc", "itm", "itg", "tig")
    assert "itl" not in stage.shown
    train(stage, recipe, run, accelerator)
    assert not any(name.startswith("itl") for line in log_of(run) for name in line)
    assert not any(name.startswith("itl") for name in pretraining.curves_of(recipe))


def test_its_curves_are_on_the_page() -> None:
    curves = pretraining.curves_of(recipe_with("objectives.itl=0.5", "objectives.tig=0.0"))
    assert list(curves.items()) == [
        ("total", "Loss, all objectives"),
        ("itc", "ITC loss"),
        ("itm", "ITM loss"),
        ("itg", "ITG loss"),
        ("itl", "ITL loss"),
        ("itc_accuracy", "ITC accuracy in the batch"),
        ("temperature", "ITC temperature"),
        ("itm_accuracy", "ITM accuracy"),
        ("itg_accuracy", "ITG accuracy, next token"),
        ("itl_ratio", "ITL predicted over true length"),
        ("lr", "Learning rate"),
    ]


def test_unused_weights_are_looked_for_unless_it_reaches_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = ("objectives.itc=0.0", "objectives.itm=0.0", "objectives.tig=0.0")
    with_itg = recipe_with(*alone, "objectives.itl=0.5")
    assert pretraining.leaves_weights_unused(with_itg), "neither ITG nor this one reaches every weight"
    monkeypatch.setattr(ImageTextLength, "reaches_every_weight", True)
    assert not pretraining.leaves_weights_unused(with_itg)
    assert pretraining.leaves_weights_unused(recipe_with(*alone)), "an objective that is off reaches nothing"
