"""What two ranks exchange, as GPUs and the recipe have it, against one process that holds both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.parity.exchange_ranks import RANKS, ROWS, inputs, network, weights
from tests.parity.processes import run_together


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each rank came to."""
    out = tmp_path_factory.mktemp("exchanges")
    run_together("tests.parity.exchange_ranks", [(out, rank) for rank in range(RANKS)])
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("way", ["all-reduce", "reduce-scatter"])
def test_a_gathered_row_gets_the_gradients_of_all_ranks(ranks: list[dict[str, Tensor]], way: str) -> None:
    every = torch.cat([torch.arange(ROWS * 8.0).view(ROWS, 4, 2) + 100 * rank for rank in range(RANKS)])
    summed = sum((weights(rank) for rank in range(RANKS)), torch.zeros(()))
    for rank, values in enumerate(ranks):
        assert torch.equal(values[f"rows, {way}"], every)
        torch.testing.assert_close(
            values[f"gradient, {way}"], summed[rank * ROWS : (rank + 1) * ROWS], atol=1e-6, rtol=1e-6
        )


def own_gradients(rank: int) -> dict[str, Tensor]:
    """Of the last step of one rank, without the other."""
    module = network()
    for micro in (2, 3):
        module(inputs(rank, micro)).square().sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("view", [True, False])
def test_gradients_are_means_over_ranks(ranks: list[dict[str, Tensor]], view: bool) -> None:
    own = [own_gradients(rank) for rank in range(RANKS)]
    for name in own[0]:
        mean = sum((gradients[name] for gradients in own), torch.zeros(())) / RANKS
        for values in ranks:
            torch.testing.assert_close(values[f"fp32, {view}, {name}"], mean, atol=1e-6, rtol=1e-6)
            assert torch.equal(values[f"fp32, {view}, {name}"], values[f"fp32, {not view}, {name}"])


@pytest.mark.parametrize("view", [True, False])
def test_bf16_rounds_what_each_rank_contributes(ranks: list[dict[str, Tensor]], view: bool) -> None:
    own = [own_gradients(rank) for rank in range(RANKS)]
    for name in own[0]:
        rounded = [gradients[name].bfloat16() / RANKS for gradients in own]
        for values in ranks:
            exchanged = values[f"bf16, {view}, {name}"]
            assert exchanged.dtype == torch.float32
            torch.testing.assert_close(exchanged, (rounded[0] + rounded[1]).float(), atol=1e-5, rtol=2**-7)
            assert torch.equal(exchanged.bfloat16().float(), exchanged), "no more than 8 significant bits"
            assert not torch.equal(exchanged, values[f"fp32, {view}, {name}"])
