"""Which group a process joins by the variables of its launcher, and how it waits for the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medunifier_cli.distributed import group
from medunifier_cli.errors import MuError
from tests import warm
from tests.folders import ROOT

SLURM = {
    "SLURM_JOB_ID": "20001", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[3-4]",
}  # fmt: skip
TORCHRUN = {
    "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu3", "MASTER_PORT": "29500",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}  # fmt: skip
NAMES = {*group.PLACE, *group.MEETING, *SLURM, *(name for names in group.MPI for name in names)}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without launchers; what a test sets is taken back."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that the variable is put back as it was
        monkeypatch.delenv(name)
    return monkeypatch


def export(bare: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        bare.setenv(name, value)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu7", "gpu7"), ("gpu[003-005,9],x1", "gpu003"), ("a-b-12,c", "a-b-12"), ("n[9,11]", "n9"),
        ("node1.cluster.org", "node1.cluster.org"),
    ],
)  # fmt: skip
def test_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert group.first_host(nodelist) == host


def test_a_node_list_without_a_host_is_one_line() -> None:
    with pytest.raises(MuError, match=r"SLURM_STEP_NODELIST: no host name in '\[1-2\]'"):
        group.first_host("[1-2]")


def test_one_process_joins_no_group(bare: pytest.MonkeyPatch) -> None:
    assert not group.joined_group()
    assert group.joined_rank() == 0
    export(bare, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="1")
    assert not group.joined_group()


def test_torchruns_group_is_joined_as_it_is(bare: pytest.MonkeyPatch) -> None:
    export(bare, **TORCHRUN)
    assert group.joined_group()
    assert group.joined_rank() == 3
    assert {name: os.environ[name] for name in TORCHRUN} == TORCHRUN


def test_a_slurm_step_is_translated(bare: pytest.MonkeyPatch) -> None:
    export(bare, **SLURM, MASTER_ADDR="chosen-by-hand")
    assert group.joined_group()
    place = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")}
    assert place == {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "MASTER_ADDR": "chosen-by-hand"}
    assert int(os.environ["MASTER_PORT"]) == group.GROUP_PORTS[20002 % len(group.GROUP_PORTS)]
    assert group.joined_rank() == 5


def test_mpirun_is_translated_where_a_meeting_place_is_given(bare: pytest.MonkeyPatch) -> None:
    export(bare, **OPEN_MPI)
    with pytest.raises(MuError, match=r"^OMPI_COMM_WORLD_SIZE=4 without MASTER_ADDR and MASTER_PORT: .*srun"):
        group.joined_group()
    export(bare, MASTER_ADDR="gpu3", MASTER_PORT="29500")
    assert group.joined_group()
    assert [os.environ[name] for name in group.PLACE] == ["4", "2", "0"]


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        dict.fromkeys(("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "PMI_SIZE"), ""),
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {**SLURM, "WORLD_SIZE": "1"}, {**OPEN_MPI, "WORLD_SIZE": "1"},
    ],
)  # fmt: skip
def test_alone_nothing_is_left_for_accelerate_to_join(
    bare: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """With empty or lonely variables too, Accelerate used to fail on a number or wait for a group."""
    from accelerate.state import PartialState

    export(bare, **variables)
    assert not group.joined_group()
    PartialState._reset_state()
    try:
        state = PartialState(cpu=True)
        assert (state.num_processes, state.backend) == (1, None)
    finally:
        PartialState._reset_state()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 without RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT is only"),
        ({"RANK": "0"}, "RANK=0 without WORLD_SIZE is only a part"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 without WORLD_SIZE is only a part"),
        ({**TORCHRUN, "LOCAL_RANK": ""}, "WORLD_SIZE=4 and RANK=3 without LOCAL_RANK is only a part"),
        ({**TORCHRUN, "RANK": "4"}, "WORLD_SIZE=4, RANK=4 and LOCAL_RANK=1 contradict each other"),
        ({"WORLD_SIZE": "1", "RANK": "2"}, "WORLD_SIZE=1 and RANK=2: a group of one"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four' is no whole number"),
        ({**SLURM, "SLURM_PROCID": ""}, "SLURM_STEP_NUM_TASKS=8 without SLURM_PROCID is only a part"),
    ],
)  # fmt: skip
def test_a_part_of_a_launchers_variables_is_refused_by_name(
    bare: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    export(bare, **variables)
    with pytest.raises(MuError) as error:
        group.joined_group()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_torchrun_really_exports_is_a_group(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "from medunifier_cli.distributed import group\n"
        # one write, which no other rank's can come between
        "print(f'joined {group.joined_group()} {group.joined_rank()}\\n', end='', flush=True)\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert sorted(line for line in done.stdout.splitlines() if "joined" in line) == [
        "joined True 0", "joined True 1",
    ]  # fmt: skip


JOIN = """
import sys
from medunifier_cli.distributed import group
from medunifier_cli.errors import MuError
group.SILENCE, group.JOIN_LIMIT = 0.3, float(sys.argv[1])
assert group.joined_group()
from accelerate import Accelerator
try:
    with group.gathering():
        Accelerator(cpu=True)
except MuError as error:
    sys.exit(f"mu: {error}")
"""


def join(limit: float, port: int) -> warm.Warm:
    """Rank 0 of a SLURM step of four tasks, the others of which are shells."""
    step = {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    env = {**os.environ, **step, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return warm.start(["-c", JOIN, limit], env=env, apart=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_step_whose_other_tasks_are_shells_is_waited_for_with_a_word_and_an_end() -> None:
    process = join(3.0, free_port())
    _, err = process.communicate(timeout=120)
    said, gave_up = (line for line in err.splitlines() if line.startswith("mu: "))
    assert "rank 0 waits for all 4 processes of SLURM step 20001.1 to start, at most 3 s" in said
    assert "`WORLD_SIZE=1 mu ...`" in said
    assert "in vain" in gave_up
    assert process.returncode == 1


def test_ctrl_c_ends_the_wait_for_a_group() -> None:
    process = join(600.0, free_port())
    deadline = time.monotonic() + 120
    while "rank 0 waits" not in process.stderr:
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - started < 30


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        process = join(600.0, taken.getsockname()[1])
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "cannot meet all 4 processes" in err.splitlines()[-1]
    assert "MASTER_PORT" in err.splitlines()[-1]
