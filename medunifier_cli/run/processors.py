"""How many processors this process may use, and how its threads wait for each other; imports no torch.

PyTorch starts a thread for each core of the machine, or each that the process is bound to. It knows neither
the quota of a container nor how many processes share a node.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medunifier_cli.errors import MuError
from medunifier_cli.files import read_text

WAIT_POLICY = "OMP_WAIT_POLICY"
"""OpenMP's variable, which GNU's library (PyTorch's on Linux) and LLVM's read when they are loaded."""
OWN_CHOICES = (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how threads wait."""
THREADS = "OMP_NUM_THREADS"
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
RANKS_HERE = (
    "LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)  # fmt: skip
"""How many processes of a group are on this machine: torchrun, srun, Open MPI, MPICH, MVAPICH."""


@dataclass(frozen=True)
class Share:
    """The processors of one process."""

    threads: int
    """1 or more."""
    limit: str
    """What sets this number, for messages; empty for the cores of the machine."""

    def __str__(self) -> str:
        return f"{self.threads} CPU thread{'s' if self.threads > 1 else ''}, by {self.limit}"


def wait_passively() -> None:
    """Have threads sleep while they wait for each other, unless the environment says how they wait.

    By default they spin. With a second process on the same cores they then spin for a thread that does not
    run, for its whole time slice. To be called before torch is imported, since OpenMP reads it when loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in OWN_CHOICES):
        os.environ[WAIT_POLICY] = "passive"


def share(ranks: int = 1) -> Share:
    """The processors that this process may use: the smallest of several limits.

    The limits are the cores it is bound to and the quota of its cgroup, both divided among the ranks of this
    machine, and `SLURM_CPUS_PER_TASK`, which counts for the task: for each rank under `srun`, else for all.

    Args:
        ranks: processes of this run on this machine, which share what the machine gives.
    """
    cores = os.cpu_count() or 1
    bound = len(_bound())
    found = [Share(bound // ranks, "the cores it is bound to" if bound < cores else "")]
    quota = min(_quotas(), default=None)
    if quota is not None:
        found.append(Share(int(quota / ranks), "the quota of its cgroup"))
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if re.fullmatch(r"[1-9]\d{0,5}", task):
        # under `srun` each rank is a task; the ranks that `mu` starts are all in one
        of_one_task = ranks if "FORK_LAUNCHED" in os.environ else 1
        found.append(Share(int(task) // of_one_task, f"SLURM_CPUS_PER_TASK={task}"))
    least = min(found, key=lambda one: one.threads)  # the first of equal ones
    divided = f"{least.limit or 'the cores'} for {ranks} ranks" if ranks > 1 else least.limit
    return Share(max(1, least.threads), divided)


def ranks_here() -> int:
    """Processes of this run's group on this machine, by the launcher's variables; 1 where none says so."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 1
    if "FORK_LAUNCHED" in os.environ:  # started by `mu` itself: all are here
        return _leading_number(os.environ["WORLD_SIZE"])
    return next((_leading_number(os.environ[name]) for name in RANKS_HERE if name in os.environ), 1)


def limit_threads(ranks: int = 1) -> Share | None:
    """Hold PyTorch's threads of this process to its share; a number that the user set stays.

    The number decides in which order sums are taken, and so their last bits: it is changed only where
    PyTorch's own number is above the share.

    Returns:
        The share, if PyTorch's number was above it.
    """
    import torch

    allowed = share(ranks)
    if os.environ.get(THREADS) or allowed.threads >= torch.get_num_threads():
        return None
    torch.set_num_threads(allowed.threads)
    return allowed


def why(threads: int, of_recipe: int, ranks: int = 1) -> str:
    """What decides the number of threads that compute, for messages.

    Args:
        threads: their number.
        of_recipe: `train.threads`, 0 where the recipe leaves it open.
        ranks: as of `share`.
    """
    if of_recipe:
        return "train.threads"
    if os.environ.get(THREADS) == str(threads):
        return THREADS
    allowed = share(ranks)
    return (allowed.limit or "the cores") if threads == allowed.threads else "PyTorch"


def limit_new_threads() -> Share | None:
    """As `limit_threads` for one process, before torch is imported: by OpenMP's variable.

    Only where a quota or SLURM gives fewer processors than the cores that libraries count themselves.
    """
    allowed = share()
    if os.environ.get(THREADS) or allowed.threads >= len(_bound()):
        return None
    os.environ[THREADS] = str(allowed.threads)
    return allowed


def divide_new_threads(ranks: int) -> None:
    """What `limit_new_threads` has set for one process, divided among ranks that this process starts.

    The user's own number stays, unless it is the very same.
    """
    allowed = share()
    if ranks > 1 and allowed.threads < len(_bound()) and os.environ.get(THREADS) == str(allowed.threads):
        os.environ[THREADS] = str(max(1, allowed.threads // ranks))


def _bound() -> set[int]:
    """The cores that this process is bound to."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """Processors that the cgroup of this process and those above it grant, where they set a limit."""
    try:
        lines = read_text(OWN_CGROUP).split("\n")
    except (OSError, MuError):  # not Linux
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, read = CGROUPS, _quota_of_v2
        elif "cpu" in controllers.split(","):
            root, read = CGROUPS / "cpu", _quota_of_v1
        else:
            continue
        # in a container the path may be that of the host, which is not mounted; its own limit is at the root
        for above in (PurePosixPath(path), *PurePosixPath(path).parents):
            try:
                quota = read(root / str(above).lstrip("/"))
            except (OSError, ValueError, MuError):
                continue
            if quota > 0:
                yield quota


def _quota_of_v2(folder: Path) -> float:
    quota, period = read_text(folder / "cpu.max").split()
    return 0.0 if quota == "max" else int(quota) / int(period)


def _quota_of_v1(folder: Path) -> float:
    quota = int(read_text(folder / "cpu.cfs_quota_us"))  # -1: no limit
    return quota / int(read_text(folder / "cpu.cfs_period_us"))


def _leading_number(text: str) -> int:
    """`4(x2),3` -> 4: SLURM lists the tasks of each node."""
    match = re.match(r"\d{1,6}", text)
    return max(1, int(match[0])) if match else 1
