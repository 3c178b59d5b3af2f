"""`train.recompute_itm` changes what is kept for the backward pass, and no number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medunifier_cli.objectives.pretraining import PretrainingLoss
from tests.tiny import DEC, draw_batch, tiny_model


def step(*overrides: str) -> tuple[dict[str, Tensor], int]:
    """Losses and gradients of a step with dropout, and the numbers that were kept for them."""
    model = tiny_model("model.qformer.dropout=0.3", *overrides, dtype=torch.float32)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses, _ = PretrainingLoss(model, DEC)(draw_batch(8))
    drawn_after = torch.rand(())
    losses["total"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {"itm", "tig"} <= losses.keys()
    values = {**losses, **gradients, "drawn after": drawn_after}
    return {name: value.detach() for name, value in values.items()}, sum(kept.values())


@pytest.mark.parametrize("every", [1, 2])
def test_it_keeps_less_and_changes_no_bit(every: int) -> None:
    layers = f"model.qformer.cross_attention_every={every}"
    plain, kept = step(layers)
    again, less = step(layers, "train.recompute_itm=true")
    assert less < 0.85 * kept
    assert again.keys() == plain.keys()
    assert len(plain) > 100
    for name, value in plain.items():
        assert torch.equal(again[name], value), name
