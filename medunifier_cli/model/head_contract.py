"""The interface of a classification head plugin; the only module of this package that a head imports.

B images, Q queries, D width, C classes or labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

__all__ = ["HeadPlugin"]


class HeadPlugin(ABC):
    """A head on the queries of the uni-modal pass. One file, one entry point in `medunifier.heads`."""

    name: ClassVar[str]
    """As a recipe names it."""
    title: ClassVar[str]
    loss: ClassVar[Literal["cross_entropy", "binary_cross_entropy"]] = "cross_entropy"
    """`cross_entropy`: one class a sample; `binary_cross_entropy`: any number of labels."""
    metric: ClassVar[Literal["", "accuracy", "auroc"]] = ""
    """Chooses the best epoch; empty for the data set's own headline metric."""

    @abstractmethod
    def build(self, queries: int, width: int, classes: int) -> nn.Module:
        """A module f_q [B, Q, D] -> logits [B, C].

        Args:
            queries: Q.
            width: D.
            classes: C >= 2.
        """

    def check(self, module: nn.Module, query_BQD: Tensor, classes: int) -> None:
        """Raises ValueError unless the module's logits are [B, C]; called once before training."""
        shape = tuple(module(query_BQD).shape)
        if shape != (len(query_BQD), classes):
            raise ValueError(f"head {self.name} gives {shape}, not {(len(query_BQD), classes)}")
