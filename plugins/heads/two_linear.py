"""Head `two-linear`: two linear layers on the flattened queries, nothing between; the authors' head."""

from __future__ import annotations

from torch import nn

from medunifier_cli.model.head_contract import HeadPlugin


class TwoLinearHead(HeadPlugin):
    name = "two-linear"
    title = "two linear layers on the flattened queries without a ReLU between, as in the authors' code"

    def build(self, queries: int, width: int, classes: int) -> nn.Module:
        # together they are one linear map, but two factors learn otherwise than their product
        return nn.Sequential(nn.Flatten(), nn.Linear(queries * width, width), nn.Linear(width, classes))
