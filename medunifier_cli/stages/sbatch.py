"""A SLURM script for a training command: warned before its time ends, requeued, and gone on with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

WARNING_SECONDS = 300
"""Before the time limit SLURM sends SIGUSR1: time for one step and one checkpoint."""


def script(arguments: Sequence[str], name: str, processes: int, workers: int) -> str:
    """The script's text.

    Args:
        arguments: of `mu`, without `--sbatch`.
        name: of the run, for the job's name and log.
        processes: GPUs of one node.
        workers: loader processes per rank.
    """
    command = shlex.join(["mu", *(word for word in arguments if word != "--sbatch")])
    return f"""\
#!/bin/bash
#SBATCH --job-name=mu-{name}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node={processes}
#SBATCH --cpus-per-task={processes * (workers + 1)}
#SBATCH --mem={processes * 48}G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@{WARNING_SECONDS}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mu-{name}-%j.log

export HF_HUB_OFFLINE=1

# The shell passes SLURM's warning on; mu saves a checkpoint and leaves with 75.
{command} &
child=$!
trap 'kill -USR1 "$child"' USR1
trap 'kill -TERM "$child"' TERM
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""
