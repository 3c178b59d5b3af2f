"""Find out from the variables of a launcher which group of processes this one belongs to, and wait for it.

`srun`, `torchrun`, `accelerate launch` and `mpirun` tell each process its place by variables. All of them are
read here, once, and given to PyTorch and Accelerate under the names that torchrun uses. A part of them, left
over from another job, is refused by name: it would end in a wait for processes that nobody started.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from medunifier_cli.errors import MuError
from medunifier_cli.stopping import installed

GROUP_PORTS = range(20000, 40000)
"""Ports from which a SLURM step takes its rendezvous port, by job id."""
PLACE = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
"""How many processes there are, which one this is, and which one on its machine."""
MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Where the processes of a group meet."""
MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)
"""The same as `PLACE` for Open MPI, for MPICH and Intel MPI, and for MVAPICH."""
SILENCE = 2.0
"""Seconds that a group may take to form before rank 0 says what it waits for."""
JOIN_LIMIT = 600.0
"""Seconds after which a process gives up waiting for the others: slow disks delay imports by minutes."""
ALONE = "to run alone, as in an interactive shell: `WORLD_SIZE=1 mu ...`"


def joined_group() -> bool:
    """Whether a launcher has started the group already; variables of SLURM and MPI are translated.

    WORLD_SIZE=1 means a process of its own whatever else is set.

    Raises:
        MuError: only a part of a launcher's variables is set, or they contradict each other.
    """
    env = os.environ
    env.pop("FORK_LAUNCHED", None)  # it marks the ranks that `run_ranks` starts, and this is none of them
    for name in (*PLACE, *MEETING, "LOCAL_WORLD_SIZE", *(name for names in MPI for name in names)):
        if env.get(name) == "":
            del env[name]  # an empty variable is an unset one, but Accelerate would read it as a number
    place = {name: _number(name) for name in PLACE if name in env}
    if place.get("WORLD_SIZE", 0) > 1:
        return _complete(place)
    if "WORLD_SIZE" in place and any(place.get(name, 0) for name in PLACE[1:]):
        raise MuError(
            f"{_listed(place)}: a group of one has no other rank than 0; unset them, or start with torchrun"
        )
    if place and "WORLD_SIZE" not in place:
        raise _part(place, ["WORLD_SIZE"])
    if not place:
        if "SLURM_STEP_ID" in env and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
            return _slurm_step()
        for names in MPI:
            if _number(names[0], 1) > 1:
                return _mpi(names)
    # Accelerate would form a group of one from them, and need a meeting place for it
    for name in (*PLACE, *(name for names in MPI for name in names)):
        env.pop(name, None)
    return False


def joined_rank() -> int:
    """This process's rank in the group that `joined_group` found."""
    return int(os.environ.get("RANK", "0"))


def _complete(place: dict[str, int]) -> bool:
    """Check that a group of several processes is described in full."""
    missing = [name for name in (*PLACE, *MEETING) if name not in os.environ]
    if missing:
        raise _part(place, missing)
    if not 0 <= place["LOCAL_RANK"] <= place["RANK"] < place["WORLD_SIZE"]:
        raise MuError(f"{_listed(place)} contradict each other; unset them, or start with torchrun")
    return True


def _slurm_step() -> bool:
    """Translate the variables of a SLURM step with several tasks."""
    env = os.environ
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
    missing = [name for name in needed if not env.get(name)]
    if missing:
        raise MuError(
            f"SLURM_STEP_NUM_TASKS={env['SLURM_STEP_NUM_TASKS']} without {_words(missing)} is only a part of "
            f"SLURM's variables; start with srun, or, {ALONE}"
        )
    env["WORLD_SIZE"], env["RANK"] = env["SLURM_STEP_NUM_TASKS"], env["SLURM_PROCID"]
    env["LOCAL_RANK"] = env["SLURM_LOCALID"]
    # all tasks of a step must agree without talking: the first host of the list, and a port that follows from
    # the job, so that two jobs on one node rarely meet; `setdefault` lets the user choose another
    env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
    job = _number("SLURM_JOB_ID") + _number("SLURM_STEP_ID")
    env.setdefault("MASTER_PORT", str(GROUP_PORTS[job % len(GROUP_PORTS)]))
    return _complete({name: _number(name) for name in PLACE})


def _mpi(names: tuple[str, str, str]) -> bool:
    """Translate the variables of `mpirun`, which does not say where its processes meet."""
    missing = [name for name in (*names, *MEETING) if name not in os.environ]
    if missing:
        raise MuError(
            f"{names[0]}={os.environ[names[0]]} without {_words(missing)}: give mpirun MASTER_ADDR and "
            f"MASTER_PORT, start with srun, torchrun or accelerate launch, or, {ALONE}"
        )
    os.environ.update(zip(PLACE, (os.environ[name] for name in names), strict=True))
    return _complete({name: _number(name) for name in PLACE})


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list: `gpu[003-005,9],x1` -> `gpu003`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodelist)
    if match is None:
        raise MuError(f"SLURM_STEP_NODELIST: no host name in {nodelist!r}; is this a step of `srun`?")
    return match[1] + (match[2] or "")


@contextmanager
def gathering() -> Iterator[None]:
    """Surround what waits for the other processes of a launcher's group: a word, a time limit, and Ctrl-C.

    PyTorch waits for half an hour without a word, in C++, where Python's signal handlers do not run.

    Raises:
        MuError: the group cannot be formed, for example because its port is taken.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    # the ranks that `run_ranks` starts have FORK_LAUNCHED; the process that started them watches them
    if ranks < 2 or "FORK_LAUNCHED" in os.environ:
        yield
        return
    import torch.distributed as dist

    step = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    group = f"all {ranks} processes" + (f" of SLURM step {step}" if "SLURM_STEP_ID" in os.environ else "")
    place = ":".join(os.environ.get(name, "") for name in MEETING)

    def say() -> None:
        print(
            f"mu: rank 0 waits for {group} to start, at most {JOIN_LIMIT:.0f} s; {ALONE}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def give_up() -> None:
        line = f"rank {joined_rank()} waited {JOIN_LIMIT:.0f} s at {place} for {group} in vain; {ALONE}"
        print(f"mu: {line}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits in C++ and hears of no exception; there is nothing to save yet

    timers = [threading.Timer(JOIN_LIMIT, give_up)]
    if joined_rank() == 0:
        timers.append(threading.Timer(SILENCE, say))
    for timer in timers:
        timer.daemon = True
        timer.start()
    interrupt = signal.getsignal(signal.SIGINT)
    if installed() is None:  # what `mu` installs answers from a thread of its own
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    except dist.DistError as error:
        raise MuError(
            f"rank {joined_rank()} cannot meet {group} at {place} ({type(error).__name__}); check that the "
            f"host is reachable, set MASTER_PORT to a port that is free, or, {ALONE}"
        ) from error
    finally:
        signal.signal(signal.SIGINT, interrupt)
        for timer in timers:
            timer.cancel()


def _part(place: dict[str, int], missing: list[str]) -> MuError:
    """The error about a part of a launcher's variables."""
    return MuError(
        f"{_listed(place)} without {_words(missing)} is only a part of a launcher's variables; unset "
        f"{_words(place)} to run alone, or start with srun, torchrun or accelerate launch"
    )


def _number(name: str, default: int = 0) -> int:
    """A variable as a whole number; `default` where it is unset or empty."""
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise MuError(f"{name}={text!r} is no whole number; unset it, or start with a launcher") from None


def _listed(place: dict[str, int]) -> str:
    return _words([f"{name}={value}" for name, value in place.items()])


def _words(names: list[str] | dict[str, int]) -> str:
    """a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
