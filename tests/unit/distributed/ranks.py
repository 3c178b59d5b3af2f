"""Pairs of ranks that meet as a launcher makes them, one pair for each case of `test_lifeline`.

python -m tests.unit.distributed.ranks OUT

All are forked from one process, as importing torch takes longer than the cases. Rank r of CASE writes to
OUT/CASE.r.out and OUT/CASE.r.err; OUT/codes.json has their exit codes, None for one that hung and was killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import agree, together
from medunifier_cli.distributed.rank import run_rank
from medunifier_cli.errors import DataError

TIMEOUT = 4.0
"""Seconds, of `train.timeout`."""


def step() -> None:
    """What a training step does together."""
    world.tick()
    dist.all_reduce(torch.ones(3))


def endless() -> None:
    while True:
        step()


def died() -> None:
    """Rank 1 is killed, as by a kernel that is short of memory; its loader process outlives it."""
    step()
    if world.rank() == 1:
        if not os.fork():
            time.sleep(5 * TIMEOUT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    endless()


def main_died() -> None:
    """Rank 0 is killed, in whose process the others meet."""
    step()
    if world.is_main():
        os.kill(os.getpid(), signal.SIGKILL)
    endless()


def stopped() -> None:
    """Rank 1 no longer runs, but its connections are there."""
    step()
    if world.rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    endless()


def stuck() -> None:
    """The main thread of rank 1 waits for a file system; its other threads run."""
    step()
    if world.rank() == 1:
        time.sleep(600)
    endless()


def failed() -> None:
    """An exception that only rank 1 meets, with rank 0 in a collective operation."""
    step()
    if world.rank() == 1:
        raise DataError("shard-7.tar: damaged")
    endless()


def failed_at_barrier() -> None:
    """An exception on the main rank, with the others at a barrier."""
    if world.is_main():
        time.sleep(0.5)
        raise DataError("results.json: no space left")
    world.barrier()


def slow_main() -> None:
    """The main rank measures for longer than the time-out, and the others wait for it."""
    step()
    if world.is_main():
        time.sleep(2 * TIMEOUT)
    world.barrier()
    step()


def remembered() -> None:
    """The group has ended, as accelerate's `end_training` ends it, but each rank keeps its place."""
    dist.destroy_process_group()
    print(f"rank {world.rank()} of {world.size()}, {'main' if world.is_main() else 'not main'}", flush=True)


def differing() -> None:
    agree(lambda: (None, {"the recipe": {"optim.peak_lr": 0.001 * (1 + world.rank()), "train.steps": 8}}))


def unprepared() -> None:
    def look() -> None:
        if world.rank() == 1:
            raise DataError("/nowhere: no such folder of shards")

    together(look)


def not_there() -> None:
    """Rank 1 does not come to an exchange that has a limit."""
    if world.rank() == 1:
        time.sleep(600)
    world.exchange(None, limit=1.0)


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        died, main_died, stopped, stuck, failed, failed_at_barrier, slow_main, remembered, differing,
        unprepared, not_there,
    )
}  # fmt: skip
HANGS = ("stopped",)
"""Cases of which rank 1 does not end by itself."""
AT_ONCE = 4
"""Pairs that run at a time."""
PATIENCE = 90.0
"""Seconds that a pair may take."""


def work(case: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    world.join(TIMEOUT)
    CASES[case]()


def fork(case: str, rank: int, port: int, out: Path, work: Callable[[str], None]) -> int:
    """Start one rank of a case; its process number."""
    number = os.fork()
    if number:
        return number
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": 2,
        "RANK": rank,
        "LOCAL_RANK": rank,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(out / f"{case}.{rank}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    try:
        run_rank(work, (case,), rank)
    except SystemExit as end:  # it must not go on as a second parent
        sys.stdout.flush()
        os._exit(int(end.code or 0))


class Pair:
    """The two ranks of a case; their exit codes are negative for a signal, None for one that does not end."""

    def __init__(self, case: str, out: Path, work: Callable[[str], None]) -> None:
        self.case = case
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.running = {rank: fork(case, rank, port, out, work) for rank in range(2)}
        self.codes: list[int | None] = [None, None]
        self.deadline = time.monotonic() + PATIENCE

    def ended(self) -> bool:
        for rank, process in list(self.running.items()):
            number, status = os.waitpid(process, os.WNOHANG)
            if number:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
                del self.running[rank]
        hangs = self.case in HANGS and list(self.running) == [1]
        if hangs or time.monotonic() > self.deadline:
            for process in self.running.values():
                os.kill(process, signal.SIGKILL)
            return True
        return not self.running


def main(out: Path, cases: Iterable[str] = CASES, work: Callable[[str], None] = work) -> None:
    waiting, pairs, done = list(cases), list[Pair](), list[Pair]()
    while waiting or pairs:
        while waiting and len(pairs) < AT_ONCE:
            pairs.append(Pair(waiting.pop(0), out, work))
        done += [pair for pair in pairs if pair.ended()]
        pairs = [pair for pair in pairs if pair not in done]
        time.sleep(0.02)
    (out / "codes.json").write_text(json.dumps({pair.case: pair.codes for pair in done}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
