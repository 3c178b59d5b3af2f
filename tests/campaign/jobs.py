"""The script that `--sbatch` prints, run under bash by stand-ins for a scheduler and for `scontrol`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from medunifier_cli.run.record import JOB
from tests.campaign import forked
from tests.campaign.home import BY_NAME, World
from tests.campaign.kills import last_line
from tests.campaign.record import ROOT
from tests.campaign.state import differences, state_of

SCONTROL = '#!/bin/bash\nif [ "$1" = requeue ]; then echo "$2" >> requeued; fi\n'
SQUEUE = "#!/bin/bash\nexit 1\n"


def job(fresh: bool) -> Callable[..., list[str]]:
    """The script that `--sbatch` prints, run by a stand-in for the scheduler that warns and requeues."""

    def kind(world: World, folder: Path, draw: random.Random) -> list[str]:
        case = BY_NAME["pretrain"]
        _, expected = world.calm(case)
        if fresh:
            forked.run([*case.words, "-o", "train.steps=2"], folder, tag="older")
        words = [*case.words, *(["--fresh"] if fresh else [])]
        printed = forked.run([*words, "--sbatch"], folder, tag="script")
        # results name the data by their path, and the run that is compared has a relative one
        (folder / "job.sh").write_text(printed.output.replace(f"={folder.resolve()}/", "="))
        commands = folder / "commands"
        commands.mkdir()
        for name, text in (("scontrol", SCONTROL), ("squeue", SQUEUE)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        wrong = _scheduler(folder, draw, commands)
        old = sorted(path.name for path in folder.glob("runs/new.old-*"))
        if len(old) != int(fresh):
            wrong.append(f"runs set aside: {old}")
        for path in [*(folder / "runs" / name for name in old), commands]:
            shutil.rmtree(path)
        for name in ("job.sh", "requeued"):
            (folder / name).unlink(missing_ok=True)
        if fresh:
            # the mark of the job that began the run is the one difference from a run without a job
            mark = folder / "runs" / "new" / JOB
            wrong += [] if mark.is_file() else [f"no {JOB} in the run"]
            mark.unlink(missing_ok=True)
        unequal = differences(expected, state_of(folder))
        return wrong + ([f"not equal: {'; '.join(unequal[:5])}"] if unequal else [])

    return kind


def _scheduler(folder: Path, draw: random.Random, commands: Path) -> list[str]:
    """Run the job until it is not queued again; warn it twice, at random moments from its start on."""
    env = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "4711",
    }
    for turn in range(4):
        (folder / "requeued").unlink(missing_ok=True)
        process = subprocess.Popen(
            ["bash", "job.sh"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if turn < 2:
            time.sleep(draw.uniform(0.3, 10.0))
            process.send_signal(signal.SIGUSR1)
        try:
            output = process.communicate(timeout=forked.LIMIT)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            forked.end_group(process.pid)
            process.communicate()
            return ["the job did not end"]
        if process.returncode == 0:
            return []
        if process.returncode != 75 or not (folder / "requeued").exists():
            return [f"start {turn + 1} ended with {process.returncode}, not requeued: {last_line(output)}"]
    return ["four starts did not finish it"]
