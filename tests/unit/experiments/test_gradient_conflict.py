"""experiments/gradient_conflict.py on losses whose gradients are known, and on a small run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from experiments.gradient_conflict import PARTS, cosine, gradients
from medunifier_cli.objectives.pretraining import PretrainingLoss
from tests.tiny import DEC, draw_batch, tiny_model


def test_agreement_conflict_and_indifference() -> None:
    one = torch.tensor([3.0, 4.0])
    assert cosine(one, 2 * one) == pytest.approx(1)
    assert cosine(one, -one) == pytest.approx(-1)
    assert cosine(one, torch.tensor([-4.0, 3.0])) == pytest.approx(0)
    assert math.isnan(cosine(one, torch.zeros(2))), "an objective that does not reach a part"


def test_gradients_of_objectives_add_up_to_that_of_the_sum() -> None:
    module = PretrainingLoss(tiny_model(), DEC)
    losses, _ = module(draw_batch(6), torch.Generator().manual_seed(0))
    names = [name for name in losses if name != "total"]
    apart = {name: gradients(module, losses[name]) for name in names}
    losses["total"].backward()
    for part in PARTS:
        summed = torch.stack([apart[name][part] for name in names]).sum(0)
        assert summed.norm() > 0, part
        found = [
            parameter.grad.flatten()
            for name, parameter in module.model.named_parameters()
            if parameter.grad is not None and part in of(name)
        ]
        torch.testing.assert_close(torch.cat(found), summed)


def of(name: str) -> list[str]:
    """The parts that a parameter is in, from its name's beginning and not by `PARTS`."""
    beginnings = {
        "image encoder": ("vit.", "vision_norm."), "queries": ("qformer.query_tokens",),
        "image-text encoder": ("qformer.blocks.",),
        "word embeddings": ("qformer.word.", "qformer.position.", "qformer.norm."),
    }  # fmt: skip
    return [part for part, starts in beginnings.items() if name.startswith(starts)]


def test_each_parameter_is_in_one_part_at_most() -> None:
    model: nn.Module = tiny_model()
    assert all(len(of(name)) <= 1 for name, _ in model.named_parameters())
    assert {part for name, _ in model.named_parameters() for part in of(name)} == set(PARTS)
