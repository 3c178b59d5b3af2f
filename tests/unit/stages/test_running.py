"""The frame of a stage: lock, record of the start, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.distributed import world
from medunifier_cli.errors import CheckpointError, DataError, GroupError, MuError, Stopped
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.run import record
from medunifier_cli.run.record import Run
from medunifier_cli.stages import running
from medunifier_cli.stages.running import open_run, train_stage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_start_is_recorded_under_a_lock_that_ends_with_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "LOCK_PATIENCE", 0.0)
    recipe = load_recipe("demo")
    with open_run(run, recipe, "phantom", tmp_path):
        assert run.recipe.exists()
        assert list(json.loads(run.provenance.read_text())["data"]) == ["phantom"]
        with pytest.raises(CheckpointError, match="another process is training this run"):
            open_run(run, recipe, "phantom", tmp_path).__enter__()
    with pytest.raises(KeyError), open_run(run, recipe, "phantom", tmp_path):
        raise KeyError("a failure inside")
    with open_run(run, recipe, "phantom", tmp_path):
        assert len(json.loads(run.provenance.read_text())["starts"]) == 3


def fail(run: Run, error: MuError, *overrides: str, after: Path | None = None) -> None:
    """Start a run that ends by an error, once a folder has been made in it."""
    with open_run(run, load_recipe("demo", overrides), "phantom", run.folder.parent):
        if after is not None:
            after.mkdir()
        raise error


def test_a_start_that_trained_nothing_leaves_the_name_to_another_recipe(run: Run) -> None:
    with pytest.raises(DataError, match="no text"):
        fail(run, DataError("no text in impression"), after=run.tokenizer)
    assert not run.tokenizer.exists()
    with pytest.raises(Stopped):
        fail(run, Stopped("SIGTERM"), "data.sections=[findings]")  # the same command resumes it
    with pytest.raises(DataError, match="later"):
        fail(run, DataError("later"), "data.sections=[findings]")
    with pytest.raises(CheckpointError, match="was started with another recipe"):
        fail(run, DataError("never raised"))


def test_a_failure_after_work_leaves_the_run_its_recipe(run: Run) -> None:
    with pytest.raises(DataError, match="no image"):
        fail(run, DataError("no image can be read"), after=run.checkpoints)
    assert run.recipe.exists()


def test_other_ranks_neither_lock_nor_write(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "is_main", lambda: False)
    with open_run(run, load_recipe("demo"), "phantom", tmp_path):
        assert not run.folder.exists()


def test_all_ranks_wait_for_the_record_and_for_the_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []

    def exchange(value: object, limit: float | None = None) -> list[object]:
        waits.append(run.recipe.exists())
        return [value]

    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setattr(world, "exchange", exchange)
    with open_run(run, load_recipe("demo"), "phantom", tmp_path):
        # for the start, for the sign of the run folder, and for what each rank sees of it
        assert waits == [True, True, True]
    assert waits == [True, True, True, True]


def test_a_rank_that_sees_another_folder_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MU_RUNS on a disk of its own machine: the other rank's sign never appears there."""
    monkeypatch.setattr(running, "SIGN_LIMIT", 0.2)
    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setattr(world, "is_main", lambda: False)

    of_rank_0 = iter([None, "the sign of rank 0", None])
    monkeypatch.setattr(world, "exchange", lambda value: [next(of_rank_0), value])
    with (
        pytest.raises(GroupError, match="is not the folder that rank 0 writes to; set MU_RUNS") as caught,
        open_run(run, load_recipe("demo"), "phantom", tmp_path),
    ):
        pass
    assert str(caught.value).startswith("rank 1: ")
    assert caught.value.of_all_ranks


class Device:
    type = "cpu"


class FakeAccelerator:
    """Has no `end_training`: that ends the group, and each rank would take itself for the only one."""

    device = Device()


class FakeStage:
    steps = 1200
    ended = ""

    def over(self) -> str:
        return self.ended


@pytest.mark.parametrize(("steps", "complete"), [(7, False), (0, True)])
def test_what_is_trained_is_said_first_and_a_complete_run_at_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], steps: int, complete: bool
) -> None:
    monkeypatch.setattr(running, "fit", lambda *_: steps)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    recipe, accelerator = load_recipe("demo"), FakeAccelerator()
    stage: Any = FakeStage()
    with_types: Any = accelerator
    train_stage(stage, run, with_types, recipe.train, recipe.optim, "40 pairs of phantom/train")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == (
        f"mu: {run.folder}: 40 pairs of phantom/train; 1,200 steps of 32 on 1 cpu process, "
        "3 threads (by OMP_NUM_THREADS)"
    )
    assert rest == ([f"mu: {run.folder} is complete: 1,200 steps"] if complete else [])
