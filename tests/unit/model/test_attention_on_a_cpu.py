"""Attention under a CPU's autocast: in fp32, whoever's layer asks for it; see `precision.attention`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from medunifier_cli.model.precision import attention, own_attention

CPU = torch.device("cpu")
MIXED = torch.autocast("cpu", torch.bfloat16)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)]


def test_values_and_gradients_are_rounded_once() -> None:
    mine, exact = inputs(), inputs()
    with MIXED:
        out = attention(*mine)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, by_hand(*exact).bfloat16())
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    out.backward(weights)
    by_hand(*exact).backward(weights.double())
    for one, other in zip(mine, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        # a bf16 has eight significant bits
        torch.testing.assert_close(one.grad, other.grad, rtol=2**-8, atol=2**-12)


def test_without_autocast_it_is_that_of_pytorch() -> None:
    q, k, v = (x.detach().float() for x in inputs())
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.equal(attention(q, k, v, attn_mask=mask), F.scaled_dot_product_attention(q, k, v, mask))


@pytest.mark.parametrize("mixed", [True, False])
def test_layers_of_timm_compute_it_so_too(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def watched(q: Tensor, k: Tensor, v: Tensor, **options: float) -> Tensor:
        asked.append(q.dtype)
        return attention(q, k, v, **options)

    monkeypatch.setattr("medunifier_cli.model.precision.attention", watched)
    layer: nn.Module = Attention(16, num_heads=2)
    x = torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), own_attention(CPU):
        layer(x)
    # without autocast nothing stands between a layer and PyTorch
    assert asked == ([torch.bfloat16] if mixed else [])
