"""The weights of the best validation so far, which every checkpoint holds, so that no kill can lose them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "best."
"""Of the names of the best weights in a checkpoint."""
RECORD = "best"
"""Name of the tensor of score, step and validations since."""


class Best:
    """Which validation was the best, with its weights; and whether enough have passed without a better one.

    Args:
        patience: validations in a row without a better one after which training ends; 0 for never.

    Attributes:
        value: the best score so far; the higher, the better.
        step: optimiser steps done when it was reached; 0 before the first validation.
        since: validations since then.
        weights: those of that step, on the CPU.
    """

    def __init__(self, patience: int = 0) -> None:
        self.patience = patience
        self.value, self.step, self.since = 0.0, 0, 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, value: float, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of the weights if their score is the best so far. One that is NaN never is."""
        # strictly: of equal ones the first, which has fitted the training samples least
        if math.isnan(value) or (self.step and value <= self.value):
            self.since += 1
            return
        self.value, self.step, self.since = value, step, 0
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    @property
    def enough(self) -> bool:
        """Whether enough validations have passed without a better one."""
        return bool(self.patience) and self.since >= self.patience

    def over(self, score: str) -> str:
        """Why training ends before its last step; empty unless enough validations were no better.

        Args:
            score: name of what was compared.
        """
        if not self.enough:
            return ""
        return (
            f"no better {score} in {self.since} validations than {abs(self.value):.4g} at step {self.step:,}"
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        record = torch.tensor([self.value, self.step, self.since], dtype=torch.float64)
        return {**{PREFIX + name: tensor for name, tensor in self.weights.items()}, RECORD: record}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned, from among the tensors of a checkpoint.

        Raises:
            KeyError: there is none of it.
        """
        # an earlier version did not count
        value, step, *since = tensors[RECORD].tolist()
        self.value, self.step, self.since = value, int(step), int(since[0]) if since else 0
        # copies: of a file that is mapped, the disk would keep the space after it is deleted
        self.weights = {
            name.removeprefix(PREFIX): tensor.clone()
            for name, tensor in tensors.items()
            if name.startswith(PREFIX)
        }


def without_best(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are those of its own step."""
    return {name: t for name, t in tensors.items() if name != RECORD and not name.startswith(PREFIX)}


def best_of(tensors: Mapping[str, Tensor]) -> Best | None:
    """The best validation that a checkpoint holds; None if its run keeps none, or has had none yet."""
    best = Best()
    if RECORD in tensors:
        best.load(tensors)
    return best if best.step else None
