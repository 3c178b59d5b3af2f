"""How many ranks, which group, and what happens when one of them fails."""

from __future__ import annotations

import pytest
import torch

from medunifier_cli.distributed import launch
from medunifier_cli.errors import MuError


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu7", "gpu7"), ("gpu[003-005,9],x1", "gpu003"), ("a-b-12,c", "a-b-12"), ("n[9,11]", "n9"),
        ("node1.cluster.org", "node1.cluster.org"),
    ],
)  # fmt: skip
def test_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert launch.first_host(nodelist) == host


def test_a_node_list_without_a_host_is_one_line() -> None:
    with pytest.raises(MuError, match=r"SLURM_STEP_NODELIST: no host name in '\[1-2\]'"):
        launch.first_host("[1-2]")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without launchers; what a test sets is taken back."""
    names = "WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR MASTER_PORT"
    slurm = "STEP_ID STEP_NUM_TASKS PROCID LOCALID STEP_NODELIST JOB_ID"
    for name in [*names.split(), *(f"SLURM_{part}" for part in slurm.split())]:
        monkeypatch.setenv(name, "")  # so that the variable is put back as it was
        monkeypatch.delenv(name)
    return monkeypatch


def test_one_process_joins_no_group(bare: pytest.MonkeyPatch) -> None:
    assert not launch.joined_group()
    assert launch.joined_rank() == 0
    bare.setenv("SLURM_STEP_ID", "0")
    bare.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not launch.joined_group()


def test_torchruns_group_is_joined_as_it_is(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("WORLD_SIZE", "4")
    bare.setenv("RANK", "3")
    assert launch.joined_group()
    assert launch.joined_rank() == 3


def test_a_slurm_step_is_translated(bare: pytest.MonkeyPatch) -> None:
    import os

    for name, value in {
        "STEP_ID": "1", "STEP_NUM_TASKS": "8", "PROCID": "5", "LOCALID": "1", "STEP_NODELIST": "gpu[3-4]",
        "JOB_ID": "20001",
    }.items():  # fmt: skip
        bare.setenv(f"SLURM_{name}", value)
    bare.setenv("MASTER_ADDR", "chosen-by-hand")
    assert launch.joined_group()
    group = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")}
    assert group == {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "MASTER_ADDR": "chosen-by-hand"}
    assert int(os.environ["MASTER_PORT"]) == launch.GROUP_PORTS[20002 % len(launch.GROUP_PORTS)]
    assert launch.joined_rank() == 5


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
    assert launch._watch([Process(code, ends=number) for number, code in enumerate(codes)]) == expected


def test_ranks_that_wait_for_a_failed_one_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.2)
    failed, waiting = Process(1), Process(0, ends=10**9, obeys=False)
    assert launch._watch([failed, waiting]) == 1
    assert waiting.killed


def test_a_rank_that_saves_is_given_all_the_time_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.0)
    stopped, saving = Process(75), Process(75, ends=12)
    assert launch._watch([stopped, saving]) == 75
    assert not saving.killed
