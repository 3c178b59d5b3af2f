"""One process or several: started here, or in the group that `srun`, `accelerate launch` or `torchrun` made.

Ranks are started the way Accelerate's own launchers do it, `PrepareForLaunch` in spawned processes, but are
watched here: `accelerate launch --cpu` starts a single process, and torchrun ends workers 30 s after a
SIGTERM and hides their exit code, so that no checkpoint of a large model and no exit 75 would survive it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from medunifier_cli.errors import MuError

GROUP_PORTS = range(20000, 40000)
"""From which a SLURM step takes its rendezvous port, by job id."""
GRACE = 5.0
"""Seconds between asking the other ranks to stop, once one has failed, and ending them."""


def wanted_processes(asked: int, recipe: int) -> int:
    """Ranks to start on this machine: the command line's, else the recipe's, else one per GPU, else one.

    Raises:
        MuError: more ranks than GPUs.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = asked or recipe or gpus or 1
    if gpus and wanted > gpus:
        raise MuError(f"{wanted} processes asked for, {gpus} GPUs here; give --num-processes {gpus}")
    return wanted


def joined_group() -> bool:
    """True where a launcher has made the group already; a SLURM step's variables are translated."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        return True
    if "SLURM_STEP_ID" not in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return False
    env = os.environ
    env["WORLD_SIZE"], env["RANK"] = env["SLURM_STEP_NUM_TASKS"], env["SLURM_PROCID"]
    env["LOCAL_RANK"] = env["SLURM_LOCALID"]
    env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
    job = int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])
    env.setdefault("MASTER_PORT", str(GROUP_PORTS[job % len(GROUP_PORTS)]))
    return True


def joined_rank() -> int:
    """This process's rank in the group that `joined_group` found."""
    return int(os.environ.get("RANK", "0"))


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list: `gpu[003-005,9],x1` -> `gpu003`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodelist)
    if match is None:
        raise MuError(f"SLURM_STEP_NODELIST: {nodelist!r} names no host")
    return match[1] + (match[2] or "")


def run_ranks(processes: int, work: Callable[..., None], arguments: Sequence[Any]) -> int:
    """Call `work(*arguments)` in `processes` new processes that form a group; returns the exit code.

    Signals that ask to stop are passed on. When one rank fails the others are asked to stop, so that none
    waits for ever in a collective. The code is the first failing rank's.
    """
    import torch.multiprocessing as multiprocessing
    from accelerate.utils import PrepareForLaunch, patch_environment

    with patch_environment(
        world_size=processes, master_addr="127.0.0.1", master_port=_free_port(), mixed_precision="no"
    ):
        context = multiprocessing.start_processes(  # type: ignore[attr-defined,no-untyped-call]
            PrepareForLaunch(_Rank(work, sys.argv), distributed_type="MULTI_GPU"),
            args=tuple(arguments), nprocs=processes, join=False, start_method="spawn",
        )  # fmt: skip
    assert context is not None
    return _watch(context.processes)


class _Rank:
    """What runs in a rank: picklable, and ends with the exit code the command line would give."""

    def __init__(self, work: Callable[..., None], argv: list[str]) -> None:
        self.work, self.argv = work, argv

    def __call__(self, *arguments: Any) -> None:
        from medunifier_cli.distributed import world
        from medunifier_cli.errors import explain

        sys.argv = self.argv  # the provenance names the command
        main = os.environ.get("RANK") == "0"
        code = 0
        try:
            self.work(*arguments)
        except BaseException as error:
            lines, code = explain(error)
            if main or code == 1:
                print("\n".join(f"mu: {line}" for line in lines), file=sys.stderr, flush=True)
            if "--debug" in self.argv:
                raise
        if code in (0, 75):
            world.leave()
            sys.exit(code)
        os._exit(code)  # a failed rank must not wait for the others in a collective


def _watch(processes: Sequence[Any]) -> int:
    stopped_at: float | None = None

    def forward(number: int, _: Any) -> None:
        for process in processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    before = {
        number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        while any(process.is_alive() for process in processes):
            failed = [process.exitcode for process in processes if process.exitcode not in (None, 0, 75)]
            if failed and stopped_at is None:
                stopped_at = time.monotonic()
                for process in processes:
                    process.terminate()
            if stopped_at is not None and time.monotonic() - stopped_at > GRACE:
                for process in processes:
                    process.kill()  # it waits for the failed rank in a collective: nothing of it can be saved
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    codes = [process.exitcode for process in processes]
    bad = [code for code in codes if code not in (0, 75)]
    if bad:
        return bad[0] if bad[0] > 0 else 1
    return 75 if 75 in codes else 0


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
