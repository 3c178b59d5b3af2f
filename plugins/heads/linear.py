"""Head `linear`: the mean of the queries, then one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from medunifier_cli.model.head_contract import HeadPlugin


class MeanLinear(nn.Module):
    """[B, Q, D] -> [B, C]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, query_BQD: Tensor) -> Tensor:
        logits: Tensor = self.linear(query_BQD.mean(dim=1))
        return logits


class LinearHead(HeadPlugin):
    name = "linear"
    title = "one linear layer on the mean of the queries"

    def build(self, queries: int, width: int, classes: int) -> nn.Module:
        return MeanLinear(width, classes)
