"""Readers of pre-trained weights of others: safetensors and PyTorch's own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tests.campaign.targets.target import Target


def make(folder: Path, home: Path) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    width, layers = 32, 3
    tensors = {
        "bert.embeddings.word_embeddings.weight": torch.randn(41, width),
        "bert.embeddings.position_embeddings.weight": torch.randn(12, width),
    }
    for layer in range(layers):
        for part, (rows, columns) in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (64, width),
            "output.dense": (width, 64),
        }.items():
            tensors[f"bert.encoder.layer.{layer}.{part}.weight"] = torch.randn(rows, columns)
            tensors[f"bert.encoder.layer.{layer}.{part}.bias"] = torch.randn(rows)
    save_file(tensors, folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    torch.save({"model": tensors}, folder / "nested.pth")


@functools.cache
def _model() -> Any:
    from tests.tiny import tiny_model

    return tiny_model()


def read(folder: Path, path: Path) -> None:
    from medunifier_cli.checkpoint.convert import load_bert

    load_bert(_model(), str(path))


TARGETS = [Target("weights", 6, ("*",), make, read, batch=100)]
