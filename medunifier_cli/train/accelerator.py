"""Set up Accelerate for a run, alike for every stage: device, precision and ranks."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
)

from medunifier_cli.distributed import world
from medunifier_cli.distributed.group import JOIN_LIMIT, gathering
from medunifier_cli.errors import MuError
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.run.processors import limit_threads, ranks_here
from medunifier_cli.terminal.say import say
from medunifier_cli.train.determinism import use_deterministic_kernels
from medunifier_cli.train.trackers.opening import check_trackers

HOOKS = {"fp32": DDPCommunicationHookType.NO, "bf16": DDPCommunicationHookType.BF16}
"""What `train.gradients` has DistributedDataParallel do before it exchanges a bucket."""
MARGIN = 60.0
"""Seconds by which torch's time-out is longer than ours, which can say more."""


def accelerator_of(settings: LoopConfig, folder: Path, leaves_weights_unused: bool = False) -> Accelerator:
    """Accelerate with the device, precision and ranks of a run.

    Args:
        settings: the recipe's section `train`.
        folder: of the run, where Accelerate may put files of its own.
        leaves_weights_unused: some trained weights may get no gradient in a step, so DistributedDataParallel
            has to look for them; a walk over the graph in each step, which is why it is not always on.

    Raises:
        MuError: `train.trackers` names one that Accelerate does not know, fp16 without a GPU, the group of a
            launcher is not complete, or the environment contradicts `train.deterministic`.
    """
    # explicit, as Accelerate would also choose Apple's GPU, on which nothing here is tested
    cpu = not torch.cuda.is_available()
    check_precision(settings.precision, cpu)
    check_trackers(settings)
    if not cpu:
        _suit_gpu(settings)
    if settings.deterministic:
        use_deterministic_kernels(cpu)
    # Torch 2.13 has another name for it, which Accelerate 1.15 does not know yet; and not the same meaning.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # Torch has one time-out for the wait at the start and for every collective operation. The former may have
    # to be longer than the recipe's; `world.join` watches over the latter, and names the rank that hangs.
    limit = timedelta(seconds=max(settings.timeout + MARGIN, JOIN_LIMIT))
    with gathering():
        accelerator = Accelerator(
            mixed_precision=settings.precision,
            cpu=cpu,
            project_dir=str(folder),
            kwargs_handlers=[
                # Buffers are not broadcast: running statistics and codebooks are computed from the data of
                # all ranks and so are equal already.
                DistributedDataParallelKwargs(
                    broadcast_buffers=False,
                    find_unused_parameters=leaves_weights_unused,
                    gradient_as_bucket_view=not cpu,  # gradients live in the buckets that are exchanged
                    comm_hook=HOOKS[settings.gradients],
                ),
                InitProcessGroupKwargs(timeout=limit),
            ],
        )
    world.join(settings.timeout)
    # The number of threads decides in which order a CPU sums, and so the last bits of every number. After
    # Accelerate, which sets a number of its own for several CPU processes where OMP_NUM_THREADS is unset.
    if settings.threads:
        torch.set_num_threads(settings.threads)
    elif (share := limit_threads(ranks_here())) and cpu and world.is_main():
        say(f"{share}; train.threads sets another number")
    return accelerator


def _suit_gpu(settings: LoopConfig) -> None:
    """Settings of PyTorch for steps whose tensors have other sizes each time, but convolutions the same."""
    if not os.environ.keys() & {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}:
        # else blocks of last step's sizes lie unused beside those of this step
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    torch.backends.cudnn.benchmark = not settings.deterministic


def check_precision(precision: str, cpu: bool) -> None:
    """Check that the device can compute in the recipe's precision.

    Raises:
        MuError: fp16 on a CPU.
    """
    # Accelerate would switch fp16 off there and train in fp32 without a word
    if precision == "fp16" and cpu:
        raise MuError(
            "train.precision: fp16 needs a GPU, and this machine has none; `-o train.precision=bf16` or `no`"
        )
