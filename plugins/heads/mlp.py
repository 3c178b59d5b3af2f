"""Head `mlp`: two linear layers on the flattened queries, with a ReLU between them; ours."""

from __future__ import annotations

from torch import nn

from medunifier_cli.model.head_contract import HeadPlugin


class MlpHead(HeadPlugin):
    name = "mlp"
    title = "two linear layers on the flattened queries, with a ReLU between"

    def build(self, queries: int, width: int, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(queries * width, width), nn.ReLU(), nn.Linear(width, classes)
        )
