"""Set up Accelerate for a run, alike for every stage: device, precision, ranks and trackers."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from medunifier_cli.recipe.schema_train import LoopConfig


def accelerator_of(settings: LoopConfig, folder: Path, leaves_weights_unused: bool = False) -> Accelerator:
    """Accelerate with the device, precision, ranks and trackers of a run.

    Args:
        settings: the recipe's section `train`.
        folder: of the run, for TensorBoard.
        leaves_weights_unused: some trained weights may get no gradient in a step, so DistributedDataParallel
            has to look for them; a walk over the graph in each step, which is why it is not always on.
    """
    # the number of threads decides in which order a CPU sums, and so the last bits of every number
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # explicit, as Accelerate would also choose Apple's GPU, on which nothing here is tested
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=cpu,
        log_with="tensorboard" if settings.tensorboard else None,
        project_dir=str(folder),
        kwargs_handlers=[
            # Buffers are not broadcast: running statistics and codebooks are computed from the data of all
            # ranks and so are equal already.
            DistributedDataParallelKwargs(
                broadcast_buffers=False, find_unused_parameters=leaves_weights_unused
            )
        ],
    )
    if settings.tensorboard:
        accelerator.init_trackers("tensorboard")
    return accelerator
