"""Accelerate's part of a run, the same for every stage: device, precision, ranks and trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs


def accelerator_of(recipe: Any, folder: Path) -> Accelerator:
    """Device, precision, ranks and trackers of a run."""
    settings = recipe.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    objectives = getattr(recipe, "objectives", None)
    # ITG alone leaves the queries' last layer without gradient; every other mix reaches all weights
    partial = objectives is not None and not (objectives.itc or objectives.tig)
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=cpu,
        log_with="tensorboard" if settings.tensorboard else None,
        project_dir=str(folder),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=partial)
        ],
    )
    if settings.tensorboard:
        accelerator.init_trackers("tensorboard")
    return accelerator
