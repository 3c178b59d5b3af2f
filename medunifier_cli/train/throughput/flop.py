"""Count the arithmetic of a step without computing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medunifier_cli.distributed import world


class Counted(Protocol):
    """What of a stage is counted, see `train.stage.Stage`."""

    def dry(self, batch: Any) -> Tensor:
        """The total loss of a micro-batch without data."""


def flop_of(stage: Counted, micro_batches: Sequence[Any]) -> float:
    """FLOP of the forward and backward passes of one step on this rank; nothing of the run changes.

    Products and convolutions alone, as `torch.utils.flop_counter` counts them: two for each multiplication
    and addition. Not counted: the optimiser, what checkpointing or a fused attention kernel computes twice,
    and the small part of the comparison of all pairs that other ranks' pairs make.

    Raises:
        RuntimeError, NotImplementedError: the model reads values, which tensors without data do not have.
    """
    # alone, as the ranks would otherwise exchange tensors without data
    with world.alone(), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        stage.dry(micro_batches[0]).backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) * len(micro_batches)
