"""What the training loop asks of a stage: pre-training, fine-tuning or fitting priors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from medunifier_cli.train.stop import Watch

Values = dict[str, Tensor]

CHANCE = "_chance"
"""`<name>_chance` among the numbers of a validation is what guessing reaches in `<name>`; shown beside it."""


class Stage(Protocol):
    """What the loop needs from pre-training, fine-tuning or a prior."""

    steps: int
    """Optimiser steps of the whole run."""
    samples: str
    """What a batch holds, in the plural: the progress line counts these per second."""
    shown: tuple[str, ...]
    """Losses and monitors on the progress line, in order; all others are in `log.jsonl` alone."""

    @property
    def module(self) -> nn.Module:
        """What is trained. `step` gets it back as an argument, wrapped where there are several ranks."""

    def start(self) -> None:
        """Load the weights that a new run starts from. Not called where a checkpoint is resumed."""

    def scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter of `module`."""

    def batches(self, first_step: int) -> Iterator[list[Any]]:
        """For each step from `first_step` on, this rank's micro-batches."""

    def step(self, module: nn.Module, batch: Any, step: int, micro: int) -> tuple[Values, Values]:
        """Forward pass -> losses (with `total`) and monitors; their averages over ranks are global."""

    def dry(self, batch: Any) -> Tensor:
        """The total loss of a micro-batch, on copies of it and of `module` without data, to count with.

        See `objectives.without_data`. Called once, where `world.alone` holds.
        """

    def doubt(self, numbers: Mapping[str, float]) -> str:
        """What the numbers of a step say is going wrong, and the keys to change, in one line; or nothing."""

    def validate(self, step: int, watch: Watch) -> Mapping[str, float]:
        """Numbers on the validation split, the same on every rank; empty without such a split.

        Its batches go through `watch`, equally many on every rank: a signal ends it at any of them, so it
        changes nothing before the last. Called outside of mixed precision: numbers are those that the
        restored weights give.
        """

    def over(self) -> str:
        """Why training ends before its last step, from the validations so far; else empty.

        The same on every rank, and in a run that was resumed.
        """

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Weights and buffers that a checkpoint must hold; those of the best validation as `Best.tensors` has
        them, which nothing changes in place while they are written."""

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that `checkpoint_tensors` returned."""

    def facts(self) -> dict[str, Any]:
        """JSON for the checkpoint: sources and hashes of weights that it does not hold."""
