"""A signal in any phase of pre-training ends it with 75, and the same command goes on to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.folders import ROOT
from tests.run.signalled import stopped_at

Start = Callable[..., subprocess.Popen[str]]

PHASES = {
    "opening the shards": "medunifier_cli.stages.pretrain.Shards.open",
    "devices and ranks": "medunifier_cli.stages.pretrain.accelerator_of",
    "holding the run": "medunifier_cli.run.record.Run.begin",
    "learning the tokenizer": "medunifier_cli.data.texts.tokenizer.TextTokenizer.train",
    "opening texts": "medunifier_cli.stages.pretrain.open_split",
    "building the model": "medunifier_cli.stages.pretrain.build_model",
    "loading a checkpoint": "medunifier_cli.checkpoint.store.newest",
    "the last checkpoint read back": "medunifier_cli.stages.pretrain.restore",
    "held-out measurement": "medunifier_cli.stages.heldout.psnr",
    "writing the result": "medunifier_cli.evaluate.results.Result.write",
}


def small(recipe: Path, shards: Path) -> list[object]:
    return ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "train.steps=1", "-o", "data.workers=0"]


@pytest.mark.parametrize("place", PHASES.values(), ids=PHASES)
def test_a_warning_ends_every_phase_outside_of_training(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, shards: Path, place: str
) -> None:
    code, printed = stopped_at(monkeypatch, place, signal.SIGUSR1, *small(recipe, shards))
    assert code == 75, printed
    assert printed.splitlines()[-1] == "mu: stopped by SIGUSR1; run the same command again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_termination_and_ctrl_c_do_the_same_where_training_would_resume(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, shards: Path, number: signal.Signals
) -> None:
    code, printed = stopped_at(monkeypatch, PHASES["learning the tokenizer"], number, *small(recipe, shards))
    assert (code, printed.splitlines()[-1]) == (
        75,
        f"mu: stopped by {number.name}; run the same command again",
    )


DRIVER = """
import sys, time
from pathlib import Path

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            marks = Path({marks!r})
            (marks / str(len(list(marks.iterdir())))).touch()
            time.sleep(600)

if __name__ == {where!r}:
    sys.meta_path.insert(0, Slow())
from medunifier_cli.__main__ import main
if __name__ == "__main__":
    main()
"""
HERE, RANKS = "__main__", "__mp_main__"


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `mu` that leaves a mark where it would import torch, and goes no further; or its ranks do."""

    def start(where: str, *arguments: object) -> subprocess.Popen[str]:
        (tmp_path / "marks").mkdir()
        path = tmp_path / "driver.py"
        path.write_text(DRIVER.format(where=where, marks=str(tmp_path / "marks")))
        env = {**os.environ, "MU_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}
        env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            [sys.executable, str(path), *map(str, arguments)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    return start


def wait_for_marks(process: subprocess.Popen[str], marks: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    while len(list(marks.iterdir())) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("verb", "name", "code"), [("pretrain", "SIGTERM", 75), ("report", "SIGINT", 130)])
def test_signals_are_answered_while_torch_is_imported(
    driver: Start, tmp_path: Path, recipe: Path, verb: str, name: str, code: int
) -> None:
    process = driver(HERE, verb, *([recipe] if verb == "pretrain" else []))
    wait_for_marks(process, tmp_path / "marks", 1)
    process.send_signal(getattr(signal, name))
    printed, _ = process.communicate(timeout=120)
    said = "interrupted" if code == 130 else f"stopped by {name}; run the same command again"
    assert (process.returncode, printed.splitlines()[1:]) == (code, [f"mu: {said}"])


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_ranks_end_with_a_launcher_that_is_killed_while_they_start(
    driver: Start, tmp_path: Path, recipe: Path, shards: Path
) -> None:
    """No orphans go on, nor hold the run."""
    process = driver(RANKS, *small(recipe, shards), "--num-processes", 2)
    wait_for_marks(process, tmp_path / "marks", 2)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(ranks, timeout=120)
    assert not alive


def test_a_signal_to_one_rank_in_start_up_stops_them_all(
    driver: Start, tmp_path: Path, recipe: Path, shards: Path
) -> None:
    process = driver(RANKS, *small(recipe, shards), "--num-processes", 2)
    wait_for_marks(process, tmp_path / "marks", 2)
    ranks_of(process)[1].send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert printed.splitlines()[1:] == ["mu: stopped by SIGTERM; run the same command again"]
