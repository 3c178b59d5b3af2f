"""The interface of a pre-training objective: a loss on one shared encoding of the batch.

An objective is one file of this folder, one weight in `recipe.schema.ObjectivesConfig` and one entry in
`pretraining.OBJECTIVES`. Its name is the weight's key, and the loss appears under it in the log, the progress
line and the page.

Letters: B local pairs, G global pairs (rank after rank), V image tokens, Q queries, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from medunifier_cli.data.contract import Batch
from medunifier_cli.model.attention.memory import ImageMemory
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.objectives.similarity import Similarity, global_similarity


class LossAndMonitors(NamedTuple):
    """A scalar loss with gradient, and scalars without that are worth watching."""

    loss: Tensor
    monitors: Mapping[str, Tensor]


@dataclass
class EncodedBatch:
    """Encodings that all objectives of one step share, each computed once."""

    model: MedUnifier
    batch: Batch
    image_BCHW: Tensor
    """Pixels in [0, 1]."""
    memory: ImageMemory
    """Result of the uni-modal pass over the images."""
    text_cls: Tensor | None
    """f_t_cls [B, D] of the uni-modal text pass; None where no active objective sets `reads_text_cls`."""
    dec_id: int
    """Token id of [DEC], which starts a generated text."""
    revival: torch.Generator | None
    """Decides which vectors replace dead codes, in the same state on all ranks; None leaves them."""
    begun: dict[str, Any] = field(default_factory=dict)
    """What `Objective.begin` of each objective returned, by its name."""

    @property
    def text_cls_BD(self) -> Tensor:
        """f_t_cls. Raises ValueError where no active objective sets `reads_text_cls`."""
        # a clear error and no lazy pass: computed on first use, dropout would draw in another order for each
        # mix of objectives
        if self.text_cls is None:
            raise ValueError("an objective reads text_cls_BD but does not set `reads_text_cls`")
        return self.text_cls

    @cached_property
    def similarity(self) -> Similarity:
        """ITC similarity of the global batch: ITC contrasts it, ITM draws its hard negatives by it."""
        # lazy, unlike the text pass: it draws no random numbers, and without ITC its heads do not exist
        return global_similarity(self.model, self.memory.query_BQD, self.text_cls_BD)


class Objective(ABC):
    """One term of equation (24)."""

    name: ClassVar[str]
    """Key of its weight in the recipe's section `objectives`, and name of its loss."""
    title: ClassVar[str]
    """Heading of its curve on the page."""
    monitors: ClassVar[Mapping[str, str]] = {}
    """Monitors that get a curve on the page, in order: name -> heading. Others are in the log alone."""
    reads_text_cls: ClassVar[bool] = False
    """True where `compute` reads `EncodedBatch.text_cls_BD`."""
    reaches_every_weight: ClassVar[bool] = False
    """True where its gradient alone reaches every trained weight of both encoders. Unless one active
    objective sets it, DistributedDataParallel has to look for unused parameters in each step."""
    # False is the safe default: the walk over the graph costs time, while a wrong True stops the run

    waits: ClassVar[bool] = False
    """True where `compute` waits for what `begin` asked a GPU for: there it comes after all others, which the
    GPU computes meanwhile. On a CPU the order of `pretraining.OBJECTIVES` is kept."""

    def begin(self, encoded: EncodedBatch) -> Any:
        """Ask the device for what `compute` needs on the CPU; returns what it finds in `encoded.begun`.

        Called for all objectives before the first one is computed.
        """
        return None  # most objectives plan nothing by what the device has computed

    def extend(self, model: MedUnifier) -> None:
        """Add heads of its own to the model: they are trained, saved and restored with it.

        The model itself builds the heads of the paper's four objectives, so nothing happens by default.
        """
        return None  # not abstract: most objectives need no head of their own

    def doubt(self, numbers: Mapping[str, float]) -> str:
        """What the losses and monitors of a step between the 50th and the 100th show to go wrong; or nothing.

        One line that names the keys to change; it is shown once, as a warning.
        """
        return ""

    @abstractmethod
    def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
        """Loss and monitors of this rank's pairs; their averages over ranks are those of the global batch."""
