"""Deterministic kernels on a GPU, for runs that must be repeatable bit for bit (`train.deterministic`).

On a CPU nothing is switched: there a fixed `train.threads` already makes runs repeatable, and PyTorch's
switch would choose other kernels for a few operations, and so change numbers.
"""

from __future__ import annotations

import os

import torch

from medunifier_cli.errors import MuError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Sizes of cuBLAS's workspace with which it is deterministic, as its documentation has them; the first is the
faster one, and takes 24 MiB of GPU memory."""


def use_deterministic_kernels(cpu: bool) -> None:
    """Make every operation use a deterministic kernel, or raise where PyTorch has none.

    What it raises becomes one line in `errors.explain`.

    Args:
        cpu: the run is on a CPU, where nothing is done.

    Raises:
        MuError: the environment asks cuBLAS for something else.
    """
    if cpu:
        return
    # read when cuBLAS starts, which is later: nothing has been computed on the GPU yet
    given = os.environ.setdefault(WORKSPACE, WORKSPACES[0])
    if given not in WORKSPACES:
        raise MuError(
            f"train.deterministic: {WORKSPACE} is {given!r}, with which cuBLAS is not deterministic; "
            f"unset it, or set it to {WORKSPACES[0]}"
        )
    torch.use_deterministic_algorithms(True)
    # measuring which convolution is fastest may choose another one in each run
    torch.backends.cudnn.benchmark = False
