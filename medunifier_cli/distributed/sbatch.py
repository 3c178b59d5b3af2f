"""Write a SLURM script that checkpoints before the time limit, requeues itself and resumes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

WARNING_SECONDS = 300
"""How long before the time limit SLURM sends SIGUSR1: enough for one step and one checkpoint."""
MEMORY_PER_PROCESS = 48
"""Main memory per GPU, in GB."""


def script(arguments: Sequence[str], name: str, processes: int, workers: int, nodes: int = 1) -> str:
    """The text of the script.

    On one node `mu` starts its processes itself, and one task has the cores of all. On several, `srun` starts
    a task per GPU, and `mu` joins them: they meet at the first host of the step, at a port of the job.

    Args:
        arguments: the command line of `mu`; `--sbatch` and `--nodes` are removed from it, and `--fresh` holds
            for the first start of the job alone.
        name: of the run, for the names of the job and its log.
        processes: GPUs of one node.
        workers: loader processes per rank.
        nodes: of this many GPUs each.
    """
    command = shlex.join(["mu", *_for_the_job(arguments)])
    if "--fresh" in arguments:
        command += ' --fresh-in-job "$SLURM_JOB_ID"'
    tasks, cores = (1, processes * (workers + 1)) if nodes == 1 else (processes, workers + 1)
    if nodes > 1:
        # since SLURM 22.05 a step does not take the cores of its tasks from the job
        command = f'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {command}'
    # sbatch reads quotes as a shell does, and a per cent sign in a file's name as the start of a pattern
    job, log = shlex.quote(f"mu-{name}"), shlex.quote(f"mu-{name.replace('%', '%%')}-%j.log")
    # `--signal=B:` warns the shell alone, so bash starts mu in the background and passes the signal on: bash
    # runs a trap only between commands, and `wait` is the one command that a signal interrupts. As it then
    # returns before mu has ended, it is called until there is no such process, and once more, as the signal
    # may have come just when mu ended. The traps come first: a signal must not meet a shell without them, nor
    # be lost before there is a child. It is sent twice, as a child that bash has just made may lose one. 138
    # and 143: mu got the signal before it had begun to handle any.
    return f"""\
#!/bin/bash
#SBATCH --job-name={job}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --gpus-per-node={processes}
#SBATCH --cpus-per-task={cores}
#SBATCH --mem={processes * MEMORY_PER_PROCESS}G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@{WARNING_SECONDS}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}

# SLURM warns this shell, which passes the signal on; mu saves a checkpoint and exits with 75.
warned= child=
pass_on() {{
  warned=$1
  if [ -n "$child" ]; then for pause in 2 0; do kill -"$1" "$child"; sleep $pause; done 2>/dev/null & fi
}}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

export HF_HUB_OFFLINE=1

{command} &
child=$!
[ -z "$warned" ] || pass_on "$warned"
wait "$child"
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
wait "$child"; code=$?
if [ -n "$warned" ]; then case "$code" in 138|143) code=75 ;; esac; fi
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def _for_the_job(arguments: Sequence[str]) -> list[str]:
    """The words of the command line that the job itself needs."""
    words, rest = [], iter(arguments)
    for word in rest:
        if word == "--nodes":
            next(rest, None)
        elif word not in ("--sbatch", "--fresh") and not word.startswith("--nodes="):
            words.append(word)
    return words
