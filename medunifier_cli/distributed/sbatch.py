"""Write a SLURM script that checkpoints before the time limit, requeues itself and resumes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

WARNING_SECONDS = 300
"""How long before the time limit SLURM sends SIGUSR1: enough for one step and one checkpoint."""
MEMORY_PER_PROCESS = 48
"""Main memory per GPU, in GB."""


def script(arguments: Sequence[str], name: str, processes: int, workers: int) -> str:
    """The text of the script.

    Args:
        arguments: the command line of `mu`; `--sbatch` is removed from it.
        name: of the run, for the names of the job and its log.
        processes: GPUs of one node.
        workers: loader processes per rank.
    """
    # sbatch reads quotes as a shell does, and a per cent sign in a file's name as the start of a pattern
    job, log = shlex.quote(f"mu-{name}"), shlex.quote(f"mu-{name.replace('%', '%%')}-%j.log")
    command = shlex.join(["mu", *(word for word in arguments if word != "--sbatch")])
    # `--signal=B:` warns the shell alone, so bash starts mu in the background and passes the signal on: bash
    # runs a trap only between commands, and `wait` is the one command that a signal interrupts. As it then
    # returns before mu has ended, it is called until there is no such process.
    return f"""\
#!/bin/bash
#SBATCH --job-name={job}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node={processes}
#SBATCH --cpus-per-task={processes * (workers + 1)}
#SBATCH --mem={processes * MEMORY_PER_PROCESS}G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@{WARNING_SECONDS}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}

export HF_HUB_OFFLINE=1

# SLURM warns this shell, which passes the signal on; mu saves a checkpoint and exits with 75.
{command} &
child=$!
trap 'kill -USR1 "$child"' USR1
trap 'kill -TERM "$child"' TERM
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""
