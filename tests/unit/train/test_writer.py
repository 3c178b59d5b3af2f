"""A checkpoint is written while training goes on, and is what a write that is waited for would have made."""

from __future__ import annotations

import errno
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
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.best import Best
from medunifier_cli.errors import CheckpointError, NotFiniteError, Stopped
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.run.record import Run
from medunifier_cli.train.loop import fit
from medunifier_cli.train.stage import Values
from medunifier_cli.train.stop import Watch
from medunifier_cli.train.writer import Writer
from tests import warm
from tests.unit.train.test_finite import BadStage
from tests.unit.train.test_loop import OPTIM, LineStage, files, lines, new_run

STEPS = 8
TRAIN = LoopConfig(
    steps=STEPS, global_batch=8, log_every=1, valid_every=0, checkpoint_every=2, keep=9, seed=5
)
PATIENCE = 120.0
"""Seconds after which something that never comes fails a test."""


class Steps(LineStage):
    """Counts its steps, and tells who waits for one of them."""

    steps = STEPS

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.begun, self.changed = -1, threading.Condition()

    def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
        with self.changed:
            self.begun = step
            self.changed.notify_all()
        return super().step(module, batch, step, micro)

    def wait_for(self, step: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.begun >= step, PATIENCE)


class SlowDisk:
    """Each write of a checkpoint waits for the second step after it, up to the last step but one.

    Args:
        fail: step whose checkpoint finds the disk full.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: Steps, fail: int = -1) -> None:
        self.stage, self.fail = stage, fail
        self.waited: list[tuple[int, bool]] = []
        self.inside = self.most = 0
        self._write = store._write
        monkeypatch.setattr(store, "_write", self.write)

    def write(self, folder: Path, checkpoint: store.Checkpoint) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.inside += 1
        self.most = max(self.most, self.inside)
        # the step after the next checkpoint's cannot begin before this one is written
        self.waited.append((checkpoint.step, self.stage.wait_for(min(checkpoint.step + 1, STEPS - 1))))
        if checkpoint.step == self.fail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._write(folder, checkpoint)
        self.inside -= 1


@pytest.fixture
def calm(tmp_path: Path, accelerator: Accelerator) -> Run:
    """A run with a fast disk."""
    run = new_run(tmp_path / "calm")
    fit(Steps(), run, accelerator, TRAIN, OPTIM)
    return run


def test_steps_go_on_while_a_slow_disk_writes_one_checkpoint_at_a_time(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, calm: Run
) -> None:
    run, stage = new_run(tmp_path / "run"), Steps()
    disk = SlowDisk(monkeypatch, stage)
    fit(stage, run, accelerator, TRAIN, OPTIM)
    assert disk.waited == [(2, True), (4, True), (6, True), (8, True)]
    assert disk.most == 1
    assert lines(run) == lines(calm)
    assert files(run.checkpoints) == files(calm.checkpoints), "the steps in between changed nothing of it"


def test_a_full_disk_is_the_same_line_as_ever_and_with_room_the_end_is_the_same(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, calm: Run
) -> None:
    class Waiting(Steps):
        def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
            # before the step, which lets the write of step 4 reach its end
            writers = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
            values = super().step(module, batch, step, micro)
            if step == 5:  # the disk is found to be full by then
                assert len(writers) == 1
                writers[0].join(PATIENCE)
            return values

    run, stage = new_run(tmp_path / "run"), Waiting()
    with monkeypatch.context() as patch:
        SlowDisk(patch, stage, fail=4)
        line = f"{run.checkpoints / 'step-00000004'}: cannot be written (No space left on device); "
        with pytest.raises(CheckpointError, match=f"^{re.escape(line)}there is no earlier one$"):
            fit(stage, run, accelerator, replace(TRAIN, checkpoint_every=4), OPTIM)
    assert stage.begun == 5, "it ends at once, and not at the next checkpoint"
    assert list(run.checkpoints.iterdir()) == []
    assert fit(Steps(), run, accelerator, TRAIN, OPTIM) == STEPS
    assert lines(run) == lines(calm)
    assert files(run.checkpoints) == files(calm.checkpoints)


@pytest.mark.parametrize("fail", [6, 8])
def test_a_full_disk_at_the_end_is_not_lost(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, fail: int
) -> None:
    run, stage = new_run(tmp_path / "run"), Steps()
    SlowDisk(monkeypatch, stage, fail)
    with pytest.raises(CheckpointError, match=rf"step-0000000{fail}: cannot be written .No space left"):
        fit(stage, run, accelerator, TRAIN, OPTIM)


def test_a_signal_waits_for_the_write_in_flight_and_for_its_own(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, calm: Run
) -> None:
    run, stage = new_run(tmp_path / "run"), Steps(signal_at=4)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", slowly(store._write))
        with pytest.raises(Stopped, match="after step 5 of 8; the checkpoint is saved"):
            # step 4's is still being written when the signal comes in step 5
            fit(stage, run, accelerator, replace(TRAIN, checkpoint_every=4), OPTIM)
    assert store.steps(run.checkpoints) == [4, 5]
    assert not any(thread.name == "checkpoint" for thread in threading.enumerate())
    fit(Steps(), run, accelerator, replace(TRAIN, checkpoint_every=4), OPTIM)
    ends = [store.load(one.checkpoints / "step-00000008") for one in (run, calm)]
    assert all(torch.equal(t, ends[1].tensors["model"][n]) for n, t in ends[0].tensors["model"].items())


def slowly(write: Callable[[Path, store.Checkpoint], None]) -> Callable[[Path, store.Checkpoint], None]:
    def slow(folder: Path, checkpoint: store.Checkpoint) -> None:
        time.sleep(0.2)
        write(folder, checkpoint)

    return slow


def test_any_other_end_lets_the_write_complete(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Steps):
        def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
            if step == 5:
                self.wait_for(4)
                raise RuntimeError("out of memory")
            return super().step(module, batch, step, micro)

    run, stage = new_run(tmp_path / "run"), Failing()
    monkeypatch.setattr(store, "_write", slowly(store._write))
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(stage, run, accelerator, TRAIN, OPTIM)
    assert store.steps(run.checkpoints) == [2, 4]


def test_what_is_kept_is_known_when_a_run_ends_for_a_nan(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "run")
    monkeypatch.setattr(store, "_write", slowly(store._write))
    train = replace(TRAIN, skip_limit=1, checkpoint_every=1)
    with pytest.raises(NotFiniteError, match="step 3's checkpoint is kept"):
        fit(BadStage({3: "nan"}), run, accelerator, train, OPTIM)
    assert store.steps(run.checkpoints) == [1, 2, 3]


def test_loader_processes_may_start_while_a_checkpoint_is_written(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loading(Steps):
        def validate(self, step: int, watch: Watch = iter) -> Mapping[str, float]:
            loader: DataLoader[int] = DataLoader(range(6), num_workers=2, batch_size=2)  # type: ignore[arg-type]
            return {"total": float(sum(int(batch.sum()) for batch in watch(loader)))}

    train = replace(TRAIN, valid_every=3)
    runs = [new_run(tmp_path / name) for name in ("calm", "run")]
    fit(Loading(), runs[0], accelerator, train, OPTIM)
    stage = Loading()
    disk = SlowDisk(monkeypatch, stage)
    fit(stage, runs[1], accelerator, train, OPTIM)
    assert all(waited for _, waited in disk.waited)
    assert lines(runs[0]) == lines(runs[1])
    assert files(runs[0].checkpoints) == files(runs[1].checkpoints)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_for_the_main_thread(number: signal.Signals) -> None:
    masks: list[set[int]] = []
    writer = Writer()
    writer.begin(lambda: masks.append({int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())}))
    writer.wait()
    assert number in masks[0]
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    made.join()


def test_a_copy_is_one_copy_and_the_best_weights_are_none(writer: Writer) -> None:
    live, best = nn.Linear(3, 2), Best()
    best.offer(0.5, 1, live.state_dict())
    tensors = {"model": {**live.state_dict(), **best.tensors()}, "rng": {"cpu.0": torch.get_rng_state()}}
    copied = writer.copy(tensors)
    kept = {name: tensor.clone() for name, tensor in tensors["model"].items()}
    with torch.no_grad():
        live.weight.fill_(7.0)
    best.offer(0.7, 2, live.state_dict())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in copied["model"].items())
    shared = [name for name, tensor in copied["model"].items()
              if tensor.data_ptr() == tensors["model"][name].data_ptr()]  # fmt: skip
    assert shared == ["best.weight", "best.bias"]


def test_what_a_write_raises_is_raised_once_where_it_is_waited_for(writer: Writer) -> None:
    def write() -> None:
        raise KeyboardInterrupt

    writer.begin(write)
    writer.join()
    assert writer.failed
    with pytest.raises(KeyboardInterrupt):
        writer.wait()
    assert not writer.failed
    writer.wait()


def test_ranks_do_not_wait_for_the_disk_and_hear_that_it_is_full(tmp_path: Path) -> None:
    done = warm.run(["-m", "tests.unit.train.writing_ranks", tmp_path], timeout=600)
    assert done.returncode == 0, done.stderr
    said = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert (said["slow.0.txt"], said["slow.1.txt"]) == ("8 steps", "8 steps")
    assert store.steps(tmp_path / "slow" / "checkpoints") == [2, 4, 6, 8]
    assert not (tmp_path / "slow.waited").exists(), "a step did not begin while the disk was busy"
    full = tmp_path / "full" / "checkpoints"
    assert said["full.0.txt"].startswith(f"{full / 'step-00000004'}: cannot be written (No space left")
    assert said["full.1.txt"] == f"{full}: the main rank could not write its checkpoint"
    assert store.steps(full) == [2]
