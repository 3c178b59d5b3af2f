"""Mixed precision is for training alone: what a stage measures between steps is fp32, as after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.data.loader import collate
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.loop import fit
from medunifier_cli.train.stage import Values
from medunifier_cli.train.stop import Watch
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import tiny_recipe

TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)
Precise = Callable[[str], Accelerator]


@pytest.fixture
def precise() -> Iterator[Precise]:
    """Accelerate on the CPU in a precision; it keeps its state in the class and refuses a second one."""

    def make(precision: str) -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, mixed_precision=precision)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_validation_logs_what_the_restored_weights_give(
    precision: str, precise: Precise, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        "data.workers=0", "train.steps=2", f"train.precision={precision}", "train.valid_every=2",
        "model.qformer.init_std=0.2",
    )  # fmt: skip
    shards = Shards.open(write_split(tmp_path / "shards", "train", 8, per_shard=8), "train")
    source = SplitSource(shards, TOKENIZER, recipe.data, recipe.text, HandMade())
    run = Run(tmp_path / "run")
    run.begin(recipe, {}, ["mu", "pretrain"])
    TOKENIZER.save(run.tokenizer)
    stage = Pretraining(recipe, run, source, source, TOKENIZER, torch.device("cpu"))
    fit(stage, run, precise(precision), recipe.train, recipe.optim)
    (logged,) = (
        line for line in map(json.loads, run.log.read_text().splitlines()) if line["event"] == "valid"
    )

    restored = restore(run, torch.device("cpu")).model
    batch = collate([source.sample(i) for i in range(8)], range(8))  # one batch is the whole split
    with torch.no_grad():
        losses, monitors = PretrainingLoss(restored, TOKENIZER.dec_id).eval()(batch)
    expected = {name: float(value) for name, value in {**losses, **monitors}.items()}
    assert {name: logged[name] for name in expected} == expected


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_steps_are_in_the_recipes_precision_and_validation_is_not(
    precision: str, precise: Precise, tmp_path: Path
) -> None:
    """Of any stage, whatever it calls in between."""
    seen: dict[str, set[torch.dtype]] = {"step": set(), "validate": set()}

    class Line(nn.Linear):
        where = "step"

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen[self.where].add(y.dtype)
            return y

    class LineStage:
        samples, shown, steps = "points", ("total",), 4

        def __init__(self) -> None:
            self.module = Line(3, 1)

        def start(self) -> None: ...

        def scale(self, name: str) -> float:
            return 1.0

        def batches(self, first_step: int) -> Iterator[list[Tensor]]:
            yield from ([torch.ones(2, 3)] for _ in range(first_step, self.steps))

        def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
            return {"total": module(batch).float().square().mean()}, {}

        def doubt(self, numbers: Any) -> str:
            return ""

        def over(self) -> str:
            return ""

        def validate(self, step: int, watch: Watch = iter) -> dict[str, float]:
            self.module.where = "validate"
            value = float(self.module(torch.ones(2, 3)).sum())
            self.module.where = "step"
            return {"total": value}

        def checkpoint_tensors(self) -> dict[str, Tensor]:
            return dict(self.module.state_dict())

        def load_tensors(self, tensors: Any) -> None:
            self.module.load_state_dict(dict(tensors))

        def facts(self) -> dict[str, Any]:
            return {}

    recipe, run = tiny_recipe("train.valid_every=2"), Run(tmp_path)
    fit(LineStage(), run, precise(precision), recipe.train, recipe.optim)
    assert seen == {
        "step": {torch.bfloat16 if precision == "bf16" else torch.float32},
        "validate": {torch.float32},
    }


@pytest.mark.parametrize(
    ("device", "frozen", "expected"),
    [
        ("cpu", True, "fp32"),
        ("cuda", False, "fp32, matrix products and convolutions in TF32"),
        (
            "cuda",
            True,
            "fp32, matrix products and convolutions in TF32, the frozen image encoder in bf16",
        ),
    ],
)
def test_results_state_the_precision(device: str, frozen: bool, expected: str) -> None:
    recipe = tiny_recipe(f"model.vit.frozen={str(frozen).lower()}")
    nothing = cast(Any, None)
    run = PretrainedRun(nothing, recipe, nothing, nothing, torch.device(device), step=0, identity="")
    assert run.precision == expected
