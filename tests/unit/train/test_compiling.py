"""Compiled parts: as exact as the model itself, compiled once, and gone where they are not wanted."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medunifier_cli.distributed import draws
from medunifier_cli.errors import MuError
from medunifier_cli.model import qformer
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.train import compiling
from medunifier_cli.train.compiling import as_written, compiled, is_compiled, missing, regions, tell_of_compiler
from tests.tiny import DEC, draw_batch, tiny_model

BATCHES, SETTLED, PAIRS = 20, 2, 6
Graphs = list[Callable[..., Any]]
DROPOUT = "model.qformer.dropout=0.1"


class Counting:
    """The compiler without its last step: a graph is run as it was read."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Graphs are kept by the code of a function: those of another test would count here."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def steps(model: nn.Module, count: int, after: Callable[[], None] = lambda: None) -> list[dict[str, Tensor]]:
    """Losses and gradients of steps without an optimiser, on batches whose texts differ in length."""
    module = PretrainingLoss(model, DEC).train()  # type: ignore[arg-type]
    outcomes = []
    for step in range(count):
        torch.manual_seed(step)  # of dropout
        module.zero_grad()
        losses, _ = module(draw_batch(PAIRS, seed=step), draws.generator(0, draws.REVIVAL, step))
        losses["total"].backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        outcomes.append({**{k: v.detach() for k, v in losses.items()}, **gradients})
        after()
    return outcomes


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_losses_and_gradients_are_exact_and_no_graph_is_added_after_the_first_steps(frozen: str) -> None:
    settings = (DROPOUT, f"model.vit.frozen={frozen}")
    plain = steps(tiny_model(*settings, dtype=torch.float32), BATCHES)
    lengths = {tuple(draw_batch(PAIRS, seed=step).text.lengths_B.tolist()) for step in range(BATCHES)}
    assert len(lengths) == BATCHES
    counting, counts = Counting(), list[int]()
    model = tiny_model(*settings, dtype=torch.float32)
    with compiled(model, counting):
        held = steps(model, BATCHES, lambda: counts.append(counting.graphs))
    for expected, found in zip(plain, held, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    assert counts[0] >= 5, "the tower, both kinds of attention, the feed-forward networks, the decoder"
    assert counts[SETTLED - 1 :] == [counts[-1]] * (BATCHES - SETTLED + 1), counts
