"""How many ranks, and what happens when one of them fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from medunifier_cli import stopping
from medunifier_cli.distributed import launch
from medunifier_cli.errors import MuError
from medunifier_cli.stopping import handled
from tests.folders import ROOT


@pytest.mark.parametrize(
    ("requested", "recipe", "gpus", "ranks"),
    [(0, 0, 0, 1), (0, 0, 4, 4), (0, 2, 4, 2), (3, 2, 4, 3), (2, 0, 0, 2)],
)
def test_the_command_line_comes_before_the_recipe_and_that_before_the_gpus(
    monkeypatch: pytest.MonkeyPatch, requested: int, recipe: int, gpus: int, ranks: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.wanted_processes(requested, recipe) == ranks


def test_more_ranks_than_gpus_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(MuError, match=r"^3 processes requested, but there are 2 GPUs; give --num-p"):
        launch.wanted_processes(3, 0)


class Process:
    """A rank as `_watch` sees it: `ends` after so many questions, or when it is told to."""

    def __init__(self, code: int, ends: int = 0, obeys: bool = True) -> None:
        self.code, self.ends, self.obeys = code, ends, obeys
        self.exitcode: int | None = None
        self.killed = False

    def is_alive(self) -> bool:
        self.ends -= 1
        if self.ends < 0 and self.exitcode is None:
            self.exitcode = self.code
        return self.exitcode is None

    pid = 0

    def terminate(self) -> None:
        if self.exitcode is None and self.obeys:
            self.exitcode = 75

    def kill(self) -> None:
        self.killed = True
        if self.exitcode is None:
            self.exitcode = -9


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([75, 0], 75), ([0, 1], 1), ([75, 130], 130), ([-11, 0], 1)],
)
def test_exit_code_of_a_group(codes: list[int], expected: int) -> None:
    ranks = [Process(code, ends=number, obeys=False) for number, code in enumerate(codes)]
    assert launch._watch(ranks) == expected


@pytest.mark.parametrize(
    ("codes", "line"),
    [
        ([0, -9], "mu: rank 1 was killed by SIGKILL; the usual cause is memory: give the job more"),
        ([1, -9], "mu: rank 1 was killed by SIGKILL; the usual cause is memory"),
        ([-11, 0], "mu: rank 0 was killed by SIGSEGV\n"),
        ([0, 3], "mu: rank 1 ended with exit code 3, and did not say why"),
        ([0, 1], ""),
        ([75, 130], ""),
    ],
)
def test_a_rank_that_ends_without_a_word_is_named_with_its_signal(
    codes: list[int], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank that takes note of the other's death, and ends with 1, is not the one to name."""
    launch._watch([Process(code) for code in codes])
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == bool(line)


def test_ranks_that_wait_for_a_failed_one_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.2)
    failed, waiting = Process(1), Process(0, ends=10**9, obeys=False)
    assert launch._watch([failed, waiting]) == 1
    assert waiting.killed


def test_a_rank_that_saves_is_given_all_the_time_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.0)
    stopped, saving = Process(75), Process(75, ends=12, obeys=False)
    assert launch._watch([stopped, saving]) == 75
    assert not saving.killed


def test_a_rank_that_waits_for_one_that_has_stopped_is_ended_and_has_stopped_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a loader hangs on one rank: it cannot take the step that the other waits for."""
    monkeypatch.setattr(launch, "LEFT_BEHIND", 0.2)
    stopped, waiting = Process(75), Process(0, ends=10**9, obeys=False)
    assert launch._watch([stopped, waiting]) == 75
    assert waiting.killed


def test_a_rank_that_a_forwarded_signal_ends_before_it_can_answer_has_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = [Process(-15, ends=3), Process(75, ends=5)]
    with handled() as request, request.collecting(lambda number: None):
        os.kill(os.getpid(), signal.SIGTERM)
        assert launch._watch(ranks) == 75
    assert launch._watch([Process(-15), Process(0, ends=3)]) == 1  # nobody had asked for it


def test_a_second_ctrl_c_kills_the_ranks_and_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME", 0.2)
    ranks = [Process(0, ends=10**9, obeys=False) for _ in range(2)]
    person = threading.Thread(target=twice_ctrl_c, args=(0.6,))
    with handled() as request:
        person.start()
        with pytest.raises(KeyboardInterrupt):
            launch._watch(ranks)
        person.join()
        assert request.interrupted
    assert [rank.killed for rank in ranks] == [True, True]


def test_one_ctrl_c_that_comes_twice_waits_for_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the terminal and from a launcher above this one."""
    ranks = [Process(75, ends=30, obeys=False) for _ in range(2)]
    person = threading.Thread(target=twice_ctrl_c, args=(0.1,))
    with handled():
        person.start()
        assert launch._watch(ranks) == 75
        person.join()
    assert [rank.killed for rank in ranks] == [False, False]


def twice_ctrl_c(pause: float) -> None:
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(pause)
    os.kill(os.getpid(), signal.SIGINT)


RANKS = """
import os, sys
from pathlib import Path
from medunifier_cli.distributed.launch import run_ranks

def work(folder):
    (Path(folder) / os.environ["RANK"]).write_text(os.environ["WORLD_SIZE"])

if __name__ == "__main__":
    sys.exit(run_ranks(2, work, (sys.argv[1],)))
"""


def test_ranks_are_numbered_from_zero_whatever_the_cluster_exports(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    (tmp_path / "out").mkdir()
    env = {**os.environ, "NODE_RANK": "1", "NPROC": "8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "ranks.py"), str(tmp_path / "out")]
    subprocess.run(command, env=env, check=True, timeout=120)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"0": "2", "1": "2"}
