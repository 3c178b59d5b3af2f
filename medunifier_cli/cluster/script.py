"""The text of a SLURM script: what it asks for, and how it answers the warning before the time limit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

WARNING_SECONDS = 300
"""How long before the time limit SLURM sends SIGUSR1: enough for one step and one checkpoint."""
MEMORY_PER_PROCESS = 48
"""Main memory per GPU, in GB."""
MEMORY_PER_CORE = 4
"""Main memory per core of a job without GPUs, in GB."""

# `--signal=B:` warns the shell alone, so bash starts mu in the background and passes the signal on: bash runs
# a trap only between commands, and `wait` is the one command that a signal interrupts. The traps come first,
# as a signal must not meet a shell without them, nor be lost before there is a child. It is sent twice: a
# child that bash has just made may lose one.
TRAPS = """\
# Before the time limit SLURM warns this shell by SIGUSR1. The shell passes it on, mu saves and exits with 75,
# and the job is queued again. SIGTERM, from `scancel` or at the limit, is passed on too, but ends the job.
warned= ended= child=
pass_on() {
  [ -n "$child" ] || return 0
  for pause in 2 0; do kill -"$1" "$child"; sleep $pause; done 2>/dev/null &
}
trap 'warned=1; pass_on USR1' USR1
trap 'ended=1; pass_on TERM' TERM
"""
"""What the shell does with a signal."""


@dataclass(frozen=True)
class Wishes:
    """What the cluster and its user want, whatever the command is."""

    partition: str = ""
    account: str = ""
    time: str = "24:00:00"
    """In a form that `sbatch --time` takes."""
    mail: str = ""
    """Address that hears of the end, of a failure and of a requeue."""
    requeues: int = 100
    """So many times the job may start again; SLURM counts its own restarts, after a dead node, as well."""


@dataclass(frozen=True)
class Job:
    """A command of `mu`, and what it needs of a cluster."""

    command: tuple[str, ...]
    """The program and its words, without the options that describe the job."""
    name: str
    """Of the job and its log, after `mu-`; no control characters."""
    processes: int = 1
    """Of `mu` on each node; with a GPU each, unless `gpus` is False."""
    cores: int = 1
    """Of each process."""
    gpus: bool = True
    nodes: int = 1
    parts: int = 0
    """Of an array, where 1 or more: each task of it makes one part."""
    resumes: bool = True
    """The command resumes where it was stopped, so that starting it again makes sense."""
    fresh: bool = False
    """The first start of the job sets an earlier run aside, see `--fresh-in-job`."""
    folder: str = ""
    """In which the command runs; empty for that of the submission."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the environment."""
    wishes: Wishes = Wishes()


def script(job: Job) -> str:
    """The text of the script of a job.

    On one node `mu` starts its processes itself, and one task has the cores of all. On several, `srun` starts
    a task per process, and `mu` joins them: they meet at the first host of the step, at a port of the job.
    """
    setting = [f"cd -- {shlex.quote(job.folder)} || exit 1"] if job.folder else []
    setting += [f"export {name}={shlex.quote(value)}" for name, value in job.variables.items()]
    setting += ["export HF_HUB_OFFLINE=1"]
    body = (
        [*TRAPS.split("\n"), *setting, "", *_until_stopped(job)]
        if job.resumes
        else [*setting, "", *_once(job)]
    )
    return "\n".join(["#!/bin/bash", *_header(job), "", *body]) + "\n"


def _header(job: Job) -> list[str]:
    """The lines that sbatch reads."""
    tasks, cores = (1, job.processes * job.cores) if job.nodes == 1 else (job.processes, job.cores)
    memory = MEMORY_PER_PROCESS * job.processes if job.gpus else MEMORY_PER_CORE * job.processes * job.cores
    log = f"mu-{job.name}".replace("%", "%%") + ("-%A_%a.log" if job.parts else "-%j.log")
    wishes = job.wishes
    settings = {
        "job-name": f"mu-{job.name}",
        "partition": wishes.partition,
        "account": wishes.account,
        "array": f"1-{job.parts}" if job.parts else "",
        "nodes": str(job.nodes),
        "ntasks-per-node": str(tasks),
        "gpus-per-node": str(job.processes) if job.gpus else "",
        "cpus-per-task": str(cores),
        "mem": f"{memory}G",
        "time": wishes.time,
        "signal": f"B:USR1@{WARNING_SECONDS}" if job.resumes else "",
        "mail-user": wishes.mail,
        "mail-type": "END,FAIL,REQUEUE" if wishes.mail else "",
    }
    # sbatch reads quotes as a shell does, and a per cent sign in a file's name as the start of a pattern
    lines = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in settings.items() if value]
    return [*lines, "#SBATCH --requeue", "#SBATCH --open-mode=append", f"#SBATCH --output={shlex.quote(log)}"]


def _command(job: Job) -> str:
    """The line that starts `mu`."""
    line = shlex.join(job.command)
    if job.parts:
        line += f' --part "$SLURM_ARRAY_TASK_ID/{job.parts}"'
    if job.fresh:
        line += ' --fresh-in-job "$SLURM_JOB_ID"'
    if job.nodes > 1:
        # Since SLURM 22.05 a step does not take the cores of its tasks from the job. A site may have set that
        # the first task to end with a code, as 75, ends the others, which may be writing the checkpoint.
        line = f'srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" {line}'
    return line


def _until_stopped(job: Job) -> list[str]:
    """Run the command; after a warning queue the job again."""
    # The number of the job stands for its whole array where the task is the last one that was started.
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.parts else "$SLURM_JOB_ID"
    # As `wait` returns on a signal, before mu has ended, it is called until there is no such process, and
    # once more, as the signal may have come just when mu ended. 138: mu, or srun, was warned before it had
    # begun to handle signals.
    return f"""\
{_command(job)} &
child=$!
[ -z "$warned" ] || pass_on USR1
[ -z "$ended" ] || pass_on TERM
wait "$child"
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
wait "$child"; code=$?
if [ -n "$warned" ] && [ "$code" -eq 138 ]; then code=75; fi
if [ -z "$warned" ] || [ "$code" -ne 75 ]; then exit "$code"; fi

job="{number}"
restarts=${{SLURM_RESTART_COUNT:-0}}
read -r from to <<< "$(squeue --noheader --jobs="$job" --format='%S %e')"
limit=unknown
if [ -n "$to" ] && from=$(date -d "$from" +%s) && to=$(date -d "$to" +%s); then limit=$((to - from)); fi
if [ -n "$ended" ]; then
  echo "mu: job $job was cancelled, or ran out of time while it saved; it is not queued again" >&2
elif [ "$restarts" -ge {job.wishes.requeues} ]; then
  echo "mu: job $job was queued again $restarts times, its limit; submit the script anew to resume" >&2
elif [ "$limit" != unknown ] && [ "$limit" -le {WARNING_SECONDS} ]; then
  echo "mu: a limit of $limit s leaves no time before the warning; submit the script with more" >&2
else
  scontrol requeue "$job"
fi
exit "$code"
""".rstrip("\n").split("\n")


def _once(job: Job) -> list[str]:
    """Run a command that would begin anew, and end at the same limit."""
    return [
        "# It starts over when it is stopped, and so its time limit ends the job.",
        f"exec {_command(job)}",
    ]
