"""Head `attention-pool`: an attention-weighted mean of the queries, then one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunifier_cli.model.head_contract import HeadPlugin


class AttentionPool(nn.Module):
    """[B, Q, D] -> [B, C]; a learned vector scores each query."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Zeros give equal weights: training starts from the mean of the queries, like the head `linear`.
        self.score = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, classes)

    def forward(self, query_BQD: Tensor) -> Tensor:
        normed = self.norm(query_BQD)
        weight_BQ = torch.softmax(normed @ self.score / normed.shape[-1] ** 0.5, dim=1)
        logits: Tensor = self.linear((weight_BQ[..., None] * normed).sum(dim=1))
        return logits


class AttentionPoolHead(HeadPlugin):
    name = "attention-pool"
    title = "one linear layer on an attention-weighted mean of the queries"

    def build(self, queries: int, width: int, classes: int) -> nn.Module:
        return AttentionPool(width, classes)
