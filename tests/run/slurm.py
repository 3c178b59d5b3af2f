"""A SLURM of its own on this machine: two pretended nodes of four GPUs each, as whoever runs the tests."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODES = ("n1", "n2")
PATIENCE = 180.0
"""Seconds for anything to happen: slurmctld looks at time limits twice a minute."""
SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# a job that was queued again waits for so many seconds and one
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
# the sizes of the nodes are made up
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 RealMemory=900000 Gres=gpu:4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=64 RealMemory=900000 Gres=gpu:4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")


def missing() -> str:
    """Why there can be no SLURM here; empty where there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


@dataclass
class Cluster:
    """A running SLURM."""

    folder: Path
    env: dict[str, str]

    def call(self, *words: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, text: str, folder: Path, *options: str, **variables: str) -> str:
        """Submit a script as `sbatch` in this folder; the number of the job."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.sh").write_text(text)
        line = ["sbatch", "--parsable", *options, "job.sh"]
        env = {**self.env, **variables}
        done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows about a job, or about a task of an array."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", "-o", number)))

    def wait(
        self, number: str, *states: str, restarts: int = 0, patience: float = PATIENCE
    ) -> dict[str, str]:
        """Wait until a job is in one of these states, after so many restarts."""

        def reached() -> bool:
            job = self.job(number)
            return job["JobState"] in states and int(job["Restarts"]) >= restarts

        until(reached, lambda: self.call("scontrol", "show", "job", number), patience)
        return self.job(number)

    def warn(self, number: str) -> None:
        """Signal the shell of a job, as SLURM does before the time limit."""
        self.call("scancel", "--batch", "--signal=USR1", number)


def until(
    reached: Callable[[], bool], otherwise: Callable[[], str] = str, patience: float = PATIENCE
) -> None:
    """Wait until something is so; what `otherwise` gives is said where it takes too long."""
    deadline = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Start the daemons in a folder of their own, and end them."""
    # not pytest's folder: the path of a socket may have 107 characters
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    processes: list[subprocess.Popen[bytes]] = []
    env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    try:
        _configure(folder)
        munge = folder / "munge"
        named = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        commands = [
            ["munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *named],
            ["slurmctld", "-D", "-c"],
            *(["slurmd", "-D", "-N", node] for node in NODES),
        ]
        for command in commands:
            output = (folder / f"{command[0]}.out").open("ab")
            processes.append(subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd=folder))
            if command[0] == "munged":
                until((munge / "socket").exists, lambda: (folder / "munged.out").read_text())
        cluster = Cluster(folder, env)
        until(lambda: _idle(env) == len(NODES), lambda: (folder / "slurmctld.log").read_text())
        yield cluster
        cluster.call("scancel", "--user", getpass.getuser())
        until(lambda: not cluster.call("squeue", "--noheader"))
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge").chmod(0o711)
    (folder / "munge" / "key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge" / "key").chmod(0o600)
    gres = [f"NodeName=n[1-2] Name=gpu File={path}" for path in GPUS]
    (folder / "gres.conf").write_text("\n".join(gres) + "\n")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    settings = SETTINGS.format(folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=ports)
    (folder / "slurm.conf").write_text(settings)


def _idle(env: dict[str, str]) -> int:
    words = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    return int(done.stdout.strip() or 0)
