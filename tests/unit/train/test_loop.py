"""The loop alone, with a model of two parameters: what it writes, in which order, and how it resumes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from medunifier_cli.checkpoint import store
from medunifier_cli.errors import CheckpointError, Stopped
from medunifier_cli.recipe.schema_train import LoopConfig, OptimConfig
from medunifier_cli.run.log import without_times
from medunifier_cli.run.record import Run
from medunifier_cli.terminal import progress
from medunifier_cli.train import loop, saving
from medunifier_cli.train.loop import fit
from medunifier_cli.train.stage import Values
from medunifier_cli.train.stop import TrainingStop, Watch
from medunifier_cli.train.writer import Writer

STEPS, POINTS = 6, 8


class Line(nn.Module):
    """y = slope x + offset, with dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        return F.dropout(self.slope * x + self.offset, dropout, self.training)


class LineStage:
    """Fits y = 3 x + 1. Notes every call in `calls`, and keeps the step of its last validation."""

    samples, shown, steps = "points", ("total", "slope"), STEPS

    def __init__(
        self, micro_batches: int = 1, dropout: float = 0.5, signal_at: int = -1, signal_in: int = -1,
        enough: int = 99,
    ) -> None:  # fmt: skip
        self.module: nn.Module = Line()
        self.micro_batches, self.dropout, self.signal_at = micro_batches, dropout, signal_at
        self.signal_in = signal_in
        self.calls: list[str] = []
        self.validated = torch.tensor(0)
        self.source, self.enough = "generated", enough

    def start(self) -> None:
        self.calls.append("start")
        nn.init.constant_(self.line.slope, 2.0)

    @property
    def line(self) -> Line:
        assert isinstance(self.module, Line)
        return self.module

    def scale(self, name: str) -> float:
        return 1.0

    def batches(self, first_step: int) -> Iterator[list[Tensor]]:
        for step in range(first_step, self.steps):
            x = torch.randn(POINTS, generator=torch.Generator().manual_seed(step))
            yield list(x.chunk(self.micro_batches))

    def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
        if step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        error = F.mse_loss(module(batch, self.dropout), 3 * batch + 1)
        return {"total": error, "mse": error}, {"slope": self.line.slope.detach().clone()}

    def dry(self, batch: Tensor) -> Tensor:
        raise RuntimeError("counted on a GPU alone")

    def doubt(self, numbers: Mapping[str, float]) -> str:
        self.calls.append("doubt")
        return "the slope is odd"

    def over(self) -> str:
        return "enough of it" if int(self.validated) >= self.enough else ""

    def validate(self, step: int, watch: Watch = iter) -> Mapping[str, float]:
        assert not self.module.training
        for batch in watch(range(3)):
            torch.rand(1)  # a validation that draws must not change training
            if step == self.signal_in and batch == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
        self.calls.append(f"validate {step}")
        self.validated = torch.tensor(step)
        return {"total": 0.25, "slope": float(self.line.slope), "slope_chance": 0.5}

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return {**self.module.state_dict(), "validated": self.validated}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict({name: tensors[name] for name in self.module.state_dict()})
        self.validated = tensors["validated"]

    def facts(self) -> dict[str, Any]:
        return {"source": self.source}


SETTINGS = LoopConfig(
    steps=STEPS,
    global_batch=POINTS,
    log_every=2,
    valid_every=3,
    checkpoint_every=3,
    keep=2,
    seed=5,
    tensorboard=False,
)
OPTIM = OptimConfig(peak_lr=0.1, warmup_lr=0.1, warmup=0.0)


def lines(run: Run) -> list[dict[str, Any]]:
    """The log without clock times."""
    rows = [json.loads(text) for text in run.log.read_text().splitlines()]
    return [without_times(row) for row in rows]


def new_run(folder: Path) -> Run:
    folder.mkdir()
    return Run(folder)


def test_a_run_steps_logs_and_validates(tmp_path: Path, accelerator: Accelerator) -> None:
    run, stage = new_run(tmp_path / "run"), LineStage(dropout=0.0)
    assert fit(stage, run, accelerator, SETTINGS, OPTIM) == STEPS
    events = [(line["event"], line["step"]) for line in lines(run)]
    # the first step, every second, and the last; validation after every third and at the end
    assert events == [
        ("train", 1), ("train", 2), ("valid", 3), ("train", 4), ("train", 6), ("valid", 6),
    ]  # fmt: skip
    totals = [line["total"] for line in lines(run) if line["event"] == "train"]
    assert totals[-1] < totals[0]
    first = lines(run)[0]
    assert first["slope"] == 2.0, "start() has run before the first step, and monitors are logged"
    assert first.keys() == {"event", "step", "total", "mse", "slope", "grad_norm", "lr"}
    assert first["lr"] == pytest.approx(0.1)
    assert fit(LineStage(), run, accelerator, SETTINGS, OPTIM) == 0, "a finished run has nothing left to do"


def test_log_comes_before_validation_and_validation_before_the_checkpoint(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stage = new_run(tmp_path / "run"), LineStage()
    begin = Writer.begin

    def noted(writer: Writer, write: Callable[[], object]) -> None:
        logged = [(line["event"], line["step"]) for line in lines(run)]
        assert logged[-1] == ("valid", int(stage.validated))
        stage.calls.append(f"save {logged[-1][1]}")
        begin(writer, write)

    monkeypatch.setattr(Writer, "begin", noted)
    fit(stage, run, accelerator, SETTINGS, OPTIM)
    assert stage.calls == ["start", "validate 3", "save 3", "validate 6", "save 6"]
    newest = store.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == int(newest.tensors["model"]["validated"]) == STEPS


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, accelerator: Accelerator, stop_after: int
) -> None:
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    uninterrupted, resumed = LineStage(), LineStage()
    fit(uninterrupted, whole, accelerator, SETTINGS, OPTIM)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=rf"stopped by SIGTERM after step {stop_after} of 6") as stopped:
        fit(LineStage(signal_at=stop_after - 1), parts, accelerator, SETTINGS, OPTIM)
    assert stopped.value.exit_code == 75
    assert store.steps(parts.checkpoints)[-1] == stop_after, "the checkpoint of the step is saved"
    assert signal.getsignal(signal.SIGTERM) is handler
    assert fit(resumed, parts, accelerator, SETTINGS, OPTIM) == STEPS - stop_after
    assert "start" in uninterrupted.calls
    assert "start" not in resumed.calls, "what a new run starts from is in the checkpoint by now"
    for name, tensor in uninterrupted.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
    ends = [store.newest(run.checkpoints) for run in (whole, parts)]
    for kind in ("model", "optimizer", "rng"):
        one, other = (end.tensors[kind] for end in ends if end is not None)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert lines(whole) == lines(parts)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_ends_a_validation_which_is_made_up_for(
    tmp_path: Path, accelerator: Accelerator, step: int, keep: int
) -> None:
    """Of a step between and of the last one, whose checkpoint must hold what the validation changes."""
    settings = dataclasses.replace(SETTINGS, keep=keep)
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    fit(LineStage(), whole, accelerator, settings, OPTIM)
    for _ in range(2):  # the second time in the one that is made up for
        stopped = LineStage(signal_in=step)
        with pytest.raises(Stopped, match=rf"^stopped by SIGUSR1 after step {step} of 6; the checkpoint is"):
            fit(stopped, parts, accelerator, settings, OPTIM)
        assert f"validate {step}" not in stopped.calls
        assert ("valid", step) not in [(line["event"], line["step"]) for line in lines(parts)]
        assert store.steps(parts.checkpoints)[-1] == step
    fit(LineStage(), parts, accelerator, settings, OPTIM)
    assert lines(whole) == lines(parts)
    assert files(whole.checkpoints) == files(parts.checkpoints)


def test_a_signal_in_a_validation_stops_also_where_ranks_are_asked_every_few_steps_only(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They all know of it: else training would go on, and the validation would be missing for good."""
    monkeypatch.setattr(loop, "AnyStop", lambda device, first: lambda stopped, done: False)
    # alone, the wait for the next batch would end it
    monkeypatch.setattr(TrainingStop, "until_stopped", lambda self, batches, alone: batches)
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    fit(LineStage(), whole, accelerator, SETTINGS, OPTIM)
    with pytest.raises(Stopped, match="after step 3 of 6"):
        fit(LineStage(signal_in=3), parts, accelerator, SETTINGS, OPTIM)
    fit(LineStage(), parts, accelerator, SETTINGS, OPTIM)
    assert lines(whole) == lines(parts)


def test_other_ranks_take_the_checkpoint_of_the_main_one(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where their node does not see it yet, they wait for it and do not go on from an older one."""
    run = new_run(tmp_path / "run")
    fit(LineStage(), run, accelerator, SETTINGS, OPTIM)
    assert store.steps(run.checkpoints) == [3, 6]
    hidden = run.checkpoints / "hidden"
    (run.checkpoints / "step-00000006").rename(hidden)
    monkeypatch.setattr(saving.world, "is_main", lambda: False)
    monkeypatch.setattr(saving.world, "exchange", lambda value: [6, value])
    monkeypatch.setattr(saving.time, "sleep", lambda _: hidden.rename(run.checkpoints / "step-00000006"))
    found = saving._of_main(run, lambda: pytest.fail("the main rank chooses"))
    assert found is not None
    assert found.step == 6
    monkeypatch.setattr(saving, "PATIENCE", 0.0)
    monkeypatch.setattr(saving.world, "exchange", lambda value: [9, value])
    monkeypatch.setattr(saving.time, "sleep", lambda _: None)
    with pytest.raises(CheckpointError, match="step-00000009"):
        saving._of_main(run, lambda: pytest.fail("the main rank chooses"))


def test_a_run_that_its_validations_end_is_finished(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stage = new_run(tmp_path / "run"), LineStage(enough=3)
    settings = dataclasses.replace(SETTINGS, checkpoint_every=99)
    assert fit(stage, run, accelerator, settings, OPTIM) == 3
    assert store.steps(run.checkpoints) == [3]
    assert "step 3/6  training ends: enough of it" in capsys.readouterr().err
    again = LineStage(enough=3)
    assert fit(again, run, accelerator, settings, OPTIM) == 0
    assert again.calls == []
    more = LineStage()  # as with more patience
    assert fit(more, run, accelerator, settings, OPTIM) == 3
    assert store.steps(run.checkpoints)[-1] == 6


@pytest.mark.parametrize("signal_in", [3, -1])
def test_a_signal_in_the_last_validation_of_a_run_that_it_ends(
    tmp_path: Path, accelerator: Accelerator, signal_in: int
) -> None:
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    fit(LineStage(enough=3), whole, accelerator, SETTINGS, OPTIM)
    with pytest.raises(Stopped, match=r"after step 3 of 6"):
        fit(LineStage(enough=3, signal_in=signal_in, signal_at=2 if signal_in < 0 else -1),
            parts, accelerator, SETTINGS, OPTIM)  # fmt: skip
    assert fit(LineStage(enough=3), parts, accelerator, SETTINGS, OPTIM) == 0
    assert lines(whole) == lines(parts)
    assert files(whole.checkpoints) == files(parts.checkpoints)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_validation_that_is_made_up_for_is_logged_once(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    fit(LineStage(), whole, accelerator, SETTINGS, OPTIM)
    with pytest.raises(Stopped):
        fit(LineStage(signal_in=6), parts, accelerator, SETTINGS, OPTIM)
    with monkeypatch.context() as patch:
        patch.setattr(store, "save", interrupted)  # between its line in the log and its checkpoint
        with pytest.raises(KeyboardInterrupt):
            fit(LineStage(), parts, accelerator, SETTINGS, OPTIM)
    assert lines(parts)[-1]["event"] == "valid"
    fit(LineStage(), parts, accelerator, SETTINGS, OPTIM)
    assert lines(whole) == lines(parts)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_signal_in_the_last_step_leaves_the_measurement_to_the_next_start(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(Stopped, match="after step 6 of 6"):
        fit(LineStage(signal_at=5), run, accelerator, SETTINGS, OPTIM)
    calls = []
    for _ in range(2):
        stage = LineStage()
        assert fit(stage, run, accelerator, SETTINGS, OPTIM) == 0
        calls.append(stage.calls)
    assert calls == [["validate 6"], []]


def test_lines_after_the_last_checkpoint_are_cut_off_when_a_killed_run_is_resumed(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    whole, killed = new_run(tmp_path / "whole"), new_run(tmp_path / "killed")
    fit(LineStage(), whole, accelerator, SETTINGS, OPTIM)

    class Killed(LineStage):
        def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
            if step == 4:
                raise KeyboardInterrupt
            return super().step(module, batch, step, micro)

    with pytest.raises(KeyboardInterrupt):
        fit(Killed(), killed, accelerator, SETTINGS, OPTIM)
    assert lines(killed)[-1]["step"] == 4
    with killed.log.open("a") as log:
        log.write('{"event": "train", "st')  # torn by the kill
    assert fit(LineStage(), killed, accelerator, SETTINGS, OPTIM) == 3
    assert lines(whole) == lines(killed)


def test_micro_batches_average_to_the_whole_batch(tmp_path: Path, accelerator: Accelerator) -> None:
    logs, ends = [], []
    for count in (1, 2, 4):
        run, stage = new_run(tmp_path / str(count)), LineStage(count, dropout=0.0)
        fit(stage, run, accelerator, SETTINGS, OPTIM)
        logs.append(lines(run))
        ends.append(stage.module.state_dict())
    for log, end in zip(logs[1:], ends[1:], strict=True):
        for line, expected in zip(log, logs[0], strict=True):
            assert line.pop("event") == expected["event"]
            numbers = {name: value for name, value in expected.items() if name != "event"}
            assert line == pytest.approx(numbers, rel=1e-5)
        torch.testing.assert_close(end, ends[0])
    assert logs[0][0]["grad_norm"] > 0.1


def test_weights_that_the_checkpoint_does_not_hold_must_be_the_same(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run, other = new_run(tmp_path / "run"), LineStage()
    with pytest.raises(Stopped):
        fit(LineStage(signal_at=0), run, accelerator, SETTINGS, OPTIM)
    other.source = "elsewhere"
    with pytest.raises(CheckpointError, match=r"source differs from what this run was trained with.*--name"):
        fit(other, run, accelerator, SETTINGS, OPTIM)


def test_the_progress_line_shows_what_the_stage_names_and_no_more(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(LineStage(), new_run(tmp_path / "run"), accelerator, SETTINGS, OPTIM)
    number = r"-?\d+\.\d{3}"
    rate = r"\d+% waiting for data  peak \d+\.\d\d GiB  [\d.,]+ points/s(  ETA \d+:\d\d)?"
    expected = [
        rf"step 1/6  train  total {number}  slope 2\.000  {rate}",
        rf"step 3/6  valid  total 0\.250  slope {number} \(chance 0\.500\)",
        rf"step 6/6  train  total {number}  slope {number}  {rate}",
        rf"step 6/6  valid  total 0\.250  slope {number} \(chance 0\.500\)",
    ]
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == len(expected)
    for line, pattern in zip(shown, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_line_between_two_of_the_log_says_which_step_its_numbers_are_of(
    tmp_path: Path,
    accelerator: Accelerator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    fit(LineStage(), new_run(tmp_path / "run"), accelerator, replace(SETTINGS, log_every=4), OPTIM)
    shown = [line.split("  ")[:2] for line in capsys.readouterr().err.splitlines() if "valid" not in line]
    assert shown == [
        ["step 1/6", "train"], ["step 2/6", "train at step 1"], ["step 3/6", "train at step 1"],
        ["step 4/6", "train"], ["step 5/6", "train at step 4"], ["step 6/6", "train"],
    ]  # fmt: skip


def test_each_step_has_the_learning_rate_of_the_schedule(tmp_path: Path, accelerator: Accelerator) -> None:
    """With a warm-up from 0 the first step changes nothing, and the second does."""
    run, from_zero = new_run(tmp_path / "run"), OptimConfig(peak_lr=0.1, warmup_lr=0.0, warmup=0.5)
    fit(LineStage(dropout=0.0), run, accelerator, LoopConfig(steps=STEPS, log_every=1), from_zero)
    slopes = [line["slope"] for line in lines(run) if line["event"] == "train"]
    assert slopes[0] == slopes[1] == 2.0
    assert len(set(slopes[1:])) == STEPS - 1


class WaitingStage(LineStage):
    """Its data stop coming after some steps, and a signal comes meanwhile."""

    def __init__(self, last_batch: int) -> None:
        super().__init__()
        self.last_batch = last_batch

    def batches(self, first_step: int) -> Iterator[list[Tensor]]:
        for step, batch in enumerate(super().batches(first_step), first_step):
            if step == self.last_batch:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                time.sleep(60)
            yield batch


@pytest.mark.parametrize("done", [0, 2, 3, 4])
def test_a_signal_ends_the_wait_for_a_batch(tmp_path: Path, accelerator: Accelerator, done: int) -> None:
    """What a file system that does not answer looks like; 3 is a step that has its checkpoint anyway."""
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    fit(LineStage(), whole, accelerator, SETTINGS, OPTIM)
    started = time.monotonic()
    expected = (
        rf"stopped by SIGTERM after step {done} of 6; the ch" if done else "before the first step was done"
    )
    with pytest.raises(Stopped, match=expected):
        fit(WaitingStage(done), parts, accelerator, SETTINGS, OPTIM)
    assert time.monotonic() - started < 30
    assert store.steps(parts.checkpoints)[-1:] == ([done] if done else [])
    assert fit(LineStage(), parts, accelerator, SETTINGS, OPTIM) == STEPS - done
    assert lines(whole) == lines(parts)
    ends = [store.newest(run.checkpoints) for run in (whole, parts)]
    for kind in ("model", "optimizer", "rng"):
        one, other = (end.tensors[kind] for end in ends if end is not None)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_stage_is_asked_once_within_the_first_hundred_steps_whether_its_numbers_look_wrong(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    class Long(LineStage):
        steps = 110

    rarely = LoopConfig(steps=110, global_batch=POINTS, log_every=1000, checkpoint_every=1000)
    fit(Long(), new_run(tmp_path / "run"), accelerator, rarely, OPTIM)
    said = [line for line in capsys.readouterr().err.splitlines() if "the slope is odd" in line]
    assert len(said) == 1
    assert "step 100: the slope is odd" in said[0]
