"""Train on phantom by `mu pretrain`, kill it, start it again, and compare with a run that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.running import mu
from experiments.same_run import differences
from medunifier_cli.checkpoint import store
from medunifier_cli.run.log import read_log
from medunifier_cli.run.record import Run

STEPS, EVERY = 40, 10
"""Steps of the run, and between two checkpoints; it is killed after the first one."""
RECIPE = """\
stage: pretrain
data: {dataset: phantom, image_size: 32, workers: 1, valid: "", test: ""}
text: {tokenizer: train, vocabulary: 400}
model:
  vit:
    {name: vit_tiny_patch16_224, weights: random, frozen: false, drop_last_block: false, patch_size: 8,
     width: 32, depth: 1, heads: 2}
  qformer: {weights: random, layers: 1, width: 32, heads: 2, ffn_width: 64, queries: 2}
  generator: {codebook_size: 16, code_width: 16, base_width: 16, residual_width: 8, revive_dead_codes: true}
objectives: {embed_norm: batch, embed_width: 16}
train: {global_batch: 16, micro_batch: 0, valid_every: 0, valid_batches: 0, log_every: 1, tensorboard: false}
"""
PHANTOM = ("-o", "train=300", "-o", "valid=8", "-o", "test=8")
TOLERANCE = 0.05
"""Largest relative difference of a logged loss from an undisturbed run on a GPU, whose kernels add in no
fixed order; on a CPU both runs are equal to the last bit."""


def killed(command: list[str], home: Path, run: Run, environment: dict[str, str]) -> int:
    """Start a run and kill it once it has a checkpoint; the step of its last one.

    Raises:
        RuntimeError: it ended before.
    """
    with (home / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "medunifier_cli", *command], env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        while not store.steps(run.checkpoints):
            if process.poll() is not None:
                raise RuntimeError(f"`mu pretrain` ended with {process.returncode} before it was killed")
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # its ranks and loader processes too
        process.wait()
    return store.steps(run.checkpoints)[-1]


def largest_difference(one: Path, other: Path) -> float:
    """Relative, of the total losses of two runs' logs."""
    totals = [[line["total"] for line in read_log(run / "log.jsonl")] for run in (one, other)]
    return max(abs(a - b) / abs(a) for a, b in zip(*totals, strict=True))


def compare(home: Path, ranks: int, precision: str, on_gpu: bool) -> dict[str, Any]:
    """Whether a killed and resumed run ends as the one that was left alone.

    Raises:
        click.ClickException: a run failed.
        RuntimeError: it was over before it could be killed.
    """
    (home / "small.yaml").write_text(RECIPE, encoding="utf-8")
    settings = {
        "train.steps": STEPS, "train.checkpoint_every": EVERY, "train.precision": precision,
        "train.threads": 0 if on_gpu else 1,
    }  # fmt: skip
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    command = ["pretrain", str(home / "small.yaml"), "--num-processes", str(ranks), *options]
    environment = {**os.environ, "MU_DATA": str(home / "data"), "MU_RUNS": str(home / "runs"),
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    with (home / "whole.log").open("w") as log:
        mu(
            ["prepare", "phantom", "--size", "32", "-o", "train=300", "-o", "valid=8", "-o", "test=8"],
            home,
            log.fileno(),
        )
        mu([*command, "--run", "whole"], home, log.fileno())
    again = [*command, "--run", "again"]
    step = killed(again, home, Run(home / "runs" / "again"), environment)
    with (home / "again.log").open("w") as log:
        mu(again, home, log.fileno())
    pair = (home / "runs" / "whole", home / "runs" / "again")
    difference = largest_difference(*pair)
    equal = not differences(*pair)
    return {
        "killed_at": step, "resumed_bit_equal": equal, "resumed_difference": difference,
        "resumed_within": difference <= TOLERANCE if on_gpu else equal,
    }  # fmt: skip
