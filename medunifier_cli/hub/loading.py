"""Load an exported model, from its folder or by its name on the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from medunifier_cli.checkpoint.exported import CONFIG, is_exported
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.errors import CheckpointError
from medunifier_cli.model.weights import is_hub_name, require_cached
from medunifier_cli.run.record import Run


def load_exported(folder_or_name: str | Path, device: torch.device | None = None) -> PretrainedRun:
    """An exported model as `checkpoint.pretrained.restore` returns that of a run.

    Args:
        folder_or_name: a folder that `mu export` or transformers' `save_pretrained` wrote, or the name of one
            on the hub (`organisation/model`) that `hf download` has fetched; nothing is downloaded here.
        device: by default a GPU if there is one.

    Returns:
        `run` is the exported folder itself; it has no checkpoints, and results and caches go into it.

    Raises:
        CheckpointError: no exported folder, or a damaged one.
        MissingWeightsError: not on this machine: the hub's folder, or the image encoder that it only names.
    """
    folder = Path(folder_or_name).expanduser()
    if not folder.is_dir() and is_hub_name(str(folder_or_name)):
        folder = require_cached("exported model", str(folder_or_name), (CONFIG,)).parent
    if not is_exported(folder):
        raise CheckpointError(f"{folder}: no exported model; `mu export RUN DIR` writes one")
    return restore(Run(folder), device)
