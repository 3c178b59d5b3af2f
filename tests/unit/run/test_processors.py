"""Threads follow what a process may use: bound cores, quota of the cgroup, SLURM, ranks of the node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medunifier_cli.run import processors
from medunifier_cli.run.processors import Share


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen cores, no limit; returns the root of the cgroups."""
    for name in (
        *processors.RANKS_HERE,
        "SLURM_CPUS_PER_TASK",
        "WORLD_SIZE",
        "FORK_LAUNCHED",
        "OMP_NUM_THREADS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    monkeypatch.setattr(processors, "OWN_CGROUP", tmp_path / "own")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_all_cores_where_nothing_limits() -> None:
    assert processors.share() == Share(16, "")
    assert processors.share(4).threads == 4
    assert processors.share(17).threads == 1


def test_bound_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6})
    assert processors.share() == Share(3, "the cores it is bound to")


@pytest.mark.parametrize(
    ("own", "limits", "threads"),
    [
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "450000 100000"}, 4),
        ("0::/job/step", {"job/step/cpu.max": "200000 100000", "job/cpu.max": "450000 100000"}, 2),
        ("0::/of/the/host", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "damaged"}, 16),
        ("7:cpu,cpuacct:/job\n3:memory:/job", {"cpu/job/cpu.cfs_quota_us": "700000",
                                               "cpu/job/cpu.cfs_period_us": "100000"}, 7),
        ("7:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    ],
)  # fmt: skip
def test_quota_of_the_cgroup_and_of_those_above(
    machine: Path, own: str, limits: dict[str, str], threads: int
) -> None:
    write(machine / "own", own)
    for name, text in limits.items():
        write(machine / name, text)
    assert processors.share() == Share(threads, "" if threads == 16 else "the quota of its cgroup")


def test_slurm_counts_for_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert processors.share() == Share(6, "SLURM_CPUS_PER_TASK=6")
    assert processors.share(2).threads == 6, "each rank is a task of srun"
    monkeypatch.setenv("FORK_LAUNCHED", "1")
    assert processors.share(2).threads == 3, "both ranks are in one task"
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "many")
    assert processors.share(2).threads == 8


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 1),  # left over: this process is in no group
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "2", "FORK_LAUNCHED": "1"}, 2),
        ({"WORLD_SIZE": "11", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 4),
        ({"WORLD_SIZE": "2"}, 1),
    ],
)
def test_ranks_of_this_machine(
    variables: dict[str, str], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processors.ranks_here() == ranks


def test_threads_are_only_ever_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert processors.limit_threads() is None
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert processors.limit_threads() is None, "the user's own number stays"
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert str(processors.limit_threads()) == "2 CPU threads, by the cores it is bound to"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_before_torch_is_there_only_what_libraries_do_not_count_themselves(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert processors.limit_new_threads() is None
    write(machine / "own", "0::/")
    write(machine / "cpu.max", "100000 100000")
    assert processors.limit_new_threads() == Share(1, "the quota of its cgroup")
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("verb", "said"), [("retrieve", 1), ("score", 0), ("pretrain", 0)])
def test_a_verb_with_a_model_says_what_limits_its_threads(verb: str, said: int) -> None:
    script = (
        "import os, sys\n"
        "from medunifier_cli.run import processors\n"
        "processors.share = lambda ranks=1: processors.Share(1, 'the quota of its cgroup')\n"
        "processors._bound = lambda: {0, 1}\n"
        "from medunifier_cli.__main__ import main\n"
        f"sys.argv = ['mu', {verb!r}, '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(os.environ.get('OMP_NUM_THREADS'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    line = "mu: 1 CPU thread, by the quota of its cgroup; OMP_NUM_THREADS sets another number\n"
    assert done.stderr == line * said
    # training counts its ranks before it limits its threads
    assert done.stdout.splitlines()[-1] == ("None" if verb == "pretrain" else "1")


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"),
                            ({"GOMP_SPINCOUNT": "7"}, "None")]
)  # fmt: skip
def test_the_entry_point_has_threads_wait_passively(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in processors.OWN_CHOICES}
    script = (
        "import os, sys\n"
        "from medunifier_cli.__main__ import main\n"
        "sys.argv = ['mu', '--version']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **given},
    )
    assert done.stdout.splitlines()[-1] == f"{expected} False"


@pytest.mark.parametrize(
    ("variables", "threads", "of_recipe", "ranks", "expected"),
    [
        ({}, 16, 0, 1, "the cores"),
        ({}, 4, 0, 4, "the cores for 4 ranks"),
        ({}, 3, 3, 1, "train.threads"),
        ({"OMP_NUM_THREADS": "5"}, 5, 0, 1, "OMP_NUM_THREADS"),
        ({"SLURM_CPUS_PER_TASK": "8"}, 8, 0, 1, "SLURM_CPUS_PER_TASK=8"),
        ({"SLURM_CPUS_PER_TASK": "8"}, 7, 0, 1, "PyTorch"),
    ],
)
def test_what_decides_the_number_is_told(
    variables: dict[str, str], threads: int, of_recipe: int, ranks: int, expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processors.why(threads, of_recipe, ranks) == expected
