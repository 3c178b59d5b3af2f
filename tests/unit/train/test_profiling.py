"""A profile of a stage whose parts are known: which of them has the time, forward and backward."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medunifier_cli.errors import MuError
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.train.stage import Values
from medunifier_cli.train.throughput.profiling import PREFIX, STEPS, Profile, named, profile_steps
from tests.unit.train.test_loop import OPTIM, LineStage

WIDE, SLOW = 700, 0.05
SETTINGS = LoopConfig(steps=9, global_batch=4)


class Heavy(nn.Module):
    """A product that takes most of the time, inside one that takes little."""

    def __init__(self) -> None:
        super().__init__()
        self.light = nn.Linear(WIDE, WIDE, bias=False)
        self.heavy = nn.Linear(WIDE, WIDE, bias=False)

    def outer(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.light(x[:4]).sum()
        product: Tensor = self.heavy(x)
        return hidden + product.sum()


class HeavyStage(LineStage):
    """Trains `Heavy`; each of its batches is late."""

    def __init__(self, steps: int = SETTINGS.steps) -> None:
        super().__init__()
        self.module, self.steps, self.taken, self.closed = Heavy(), steps, 0, False

    def start(self) -> None:
        """Random weights are as good as any."""

    def batches(self, first_step: int) -> Iterator[list[Tensor]]:
        try:
            for _ in range(first_step, self.steps):
                time.sleep(SLOW)
                yield [torch.ones(2000, WIDE)]
        finally:
            self.closed = True

    def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
        self.taken += 1
        return {"total": self.module.outer(batch)}, {}  # type: ignore[operator]


def profiled(stage: HeavyStage, accelerator: Accelerator, folder: Path, **other: Any) -> Profile | None:
    parts = [(stage.module, "outer", "outer"), (stage.module.heavy, "forward", "heavy")]
    trace = folder / "run" / "profile" / "trace.json"
    trace.parent.mkdir(parents=True)
    return profile_steps(stage, accelerator, SETTINGS, OPTIM, parts, trace, **{"watched": True, **other})


def test_time_belongs_to_the_innermost_part_forward_and_backward(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    stage = HeavyStage()
    profile = profiled(stage, accelerator, tmp_path)
    assert profile is not None
    rows = {row.name: row for row in profile.parts}
    assert {
        "heavy",
        "outer",
        "heavy, backward",
        "outer, backward",
        "optimiser",
        "waiting for data",
    } <= rows.keys()
    assert rows["heavy"].milliseconds > 2 * rows["outer"].milliseconds
    assert rows["heavy, backward"].milliseconds > 2 * rows["outer, backward"].milliseconds
    assert rows["heavy"].most == "aten::mm"
    assert rows["waiting for data"].milliseconds >= SLOW * 1000
    assert [row.share for row in profile.parts] == sorted((row.share for row in profile.parts), reverse=True)
    assert sum(row.share for row in profile.parts) == pytest.approx(1)
    assert sum(row.milliseconds for row in profile.parts) == pytest.approx(profile.seconds * 1000, rel=0.1)
    assert "aten::mm" in [row.name for row in profile.kernels[:2]]
    assert profile.steps == STEPS
    assert stage.closed, "a loader has processes to end"


def test_the_trace_is_what_a_browser_reads_and_all_that_is_written(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    stage = HeavyStage()
    profile = profiled(stage, accelerator, tmp_path)
    assert profile is not None
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert written == ["run/profile/trace.json"]
    events = json.loads(profile.trace.read_text())["traceEvents"]
    assert sum(event.get("name") == f"{PREFIX}heavy" and event.get("ph") == "X" for event in events) == STEPS
    assert "calls" not in vars(stage.module)
    assert "outer" not in vars(stage.module), "methods are as they were"


def test_other_ranks_take_part_and_measure_nothing(tmp_path: Path, accelerator: Accelerator) -> None:
    one, other = HeavyStage(), HeavyStage()
    assert profiled(one, accelerator, tmp_path / "one", watched=False) is None
    assert profiled(other, accelerator, tmp_path / "other") is not None
    assert one.taken == other.taken


@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_of_fewer_steps_is_profiled_as_far_as_it_goes(
    steps: int, tmp_path: Path, accelerator: Accelerator
) -> None:
    profile = profiled(HeavyStage(steps), accelerator, tmp_path)
    assert profile is not None
    assert profile.steps == min(steps, STEPS)


def test_a_run_without_steps_is_one_line(tmp_path: Path, accelerator: Accelerator) -> None:
    with pytest.raises(MuError, match=r"no step to profile.*train\.steps"):
        profiled(HeavyStage(0), accelerator, tmp_path)


def test_names_are_taken_back_after_an_error() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shape"), named([(module, "forward", "part")]):
        module(torch.ones(3))
    assert "forward" not in vars(module)
