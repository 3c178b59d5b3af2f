"""Copies of a model and a batch without data, on which a step can be counted and not computed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medunifier_cli.data.batch import Batch
from medunifier_cli.objectives.itm import ImageTextMatching
from medunifier_cli.objectives.objective import Objective
from medunifier_cli.objectives.pretraining import PretrainingLoss

META = torch.device("meta")
ON_HOST = {"lengths_B", "copy_N", "position_B"}
"""Fields of a batch that are on the CPU wherever the rest of it is, and have to keep their values."""

Value = TypeVar("Value")


class AnyNegatives(ImageTextMatching):
    """ITM with negatives drawn at random: those of the similarity would need its values."""

    def draw(self, weights_2BG: Tensor, positions: Sequence[int], seed: int) -> Tensor:
        """For each of B pairs another one, twice."""
        pairs = len(positions)
        steps_2B = torch.randint(1, max(2, pairs), (2, pairs), generator=torch.Generator().manual_seed(0))
        return (torch.arange(pairs) + steps_2B) % pairs


def countable(objectives: Sequence[Objective]) -> list[Objective]:
    """The same objectives, none of which reads the values of a tensor."""
    return [AnyNegatives() if objective.name == "itm" else objective for objective in objectives]


def loss_without_data(module: PretrainingLoss, batch: Batch) -> Tensor:
    """The total loss of pre-training, fp32 scalar without a value, of copies of both without data."""
    text = batch.text
    empty = dataclasses.replace(batch, text=dataclasses.replace(text, copy_N=text.on_host().ids_N))
    copied = without_data(module)
    copied.objectives = countable(copied.objectives)
    losses, _ = copied(without_data(empty))
    total: Tensor = losses["total"]
    return total


def without_data(value: Value, name: str = "") -> Value:
    """A module, a batch or a tensor on PyTorch's meta device, where tensors have shapes and no contents.

    Args:
        value: a dataclass is copied field by field; what is no tensor, module or dataclass stays as it is.
        name: of the field that it is; those in `ON_HOST` go to the CPU and keep their values.
    """
    result: Any = value
    if isinstance(value, nn.Module):
        tensors = [*value.parameters(), *value.buffers()]
        # a deep copy takes what its memo has for an object in place of a copy
        result = copy.deepcopy(value, {id(tensor): _like(tensor) for tensor in tensors})
    elif isinstance(value, Tensor):
        result = value.cpu() if name in ON_HOST else _like(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: without_data(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
        result = dataclasses.replace(value, **fields)
    copied: Value = result
    return copied


def _like(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device=META)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
