"""Two ranks that train on a slow disk, and on one that is full at step 4, for `test_writer`.

python -m tests.unit.train.writing_ranks OUT

All are forked from one process, as importing torch takes longer than the steps. Rank r of CASE writes how it
ended to OUT/CASE.r.txt; the run of a case is OUT/CASE.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from medunifier_cli.checkpoint import store
from medunifier_cli.distributed import world
from medunifier_cli.errors import MuError
from medunifier_cli.run.record import Run
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.loop import fit
from tests.unit.train.test_loop import OPTIM
from tests.unit.train.test_writer import STEPS, TRAIN, Steps

CASES = ("slow", "full")


def train(case: str, out: Path) -> str:
    """Train on this rank; what it ended with."""
    stage, write = Steps(), store._write

    def slow(folder: Path, checkpoint: store.Checkpoint) -> None:
        came = stage.wait_for(min(checkpoint.step + 1, STEPS - 1))
        if case == "full" and checkpoint.step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, checkpoint)
        if not came:
            (out / f"{case}.waited").touch()

    store._write = slow
    accelerator = accelerator_of(replace(TRAIN, timeout=120), out)
    try:
        steps = fit(stage, Run(out / case), accelerator, TRAIN, OPTIM)
        return f"{steps} steps"
    except MuError as error:
        return str(error)
    finally:
        world.leave()


def main() -> None:
    out = Path(sys.argv[1])
    for case in CASES:
        (out / case).mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        pids = []
        for rank in range(2):
            pid = os.fork()
            if not pid:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
                )  # fmt: skip
                try:
                    said = train(case, out)
                except BaseException:
                    said = traceback.format_exc()
                (out / f"{case}.{rank}.txt").write_text(said)
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
