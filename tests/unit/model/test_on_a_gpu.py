"""What the model does on a GPU alone, as far as a CPU can tell: it changes no number but by rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.model import medunifier
from medunifier_cli.model.medunifier import aligned
from medunifier_cli.model.norm import Synchronised
from medunifier_cli.model.precision import exact_products, measuring


def test_aligned_rows_change_neither_loss_nor_prediction_nor_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(medunifier, "ALIGNED", 8)
    torch.manual_seed(0)
    text = torch.randn(6, 5, dtype=torch.float64)
    target = torch.randint(13, (6,))
    outcomes = []
    for change in (lambda *both: both, aligned):
        word = torch.linspace(-1, 1, 65, dtype=torch.float64).view(13, 5).requires_grad_()
        bias = torch.linspace(1, -1, 13, dtype=torch.float64).requires_grad_()
        logits = F.linear(text, *change(word, bias))
        loss = F.cross_entropy(logits, target)
        loss.backward()
        outcomes.append((loss, logits.argmax(1), word.grad, bias.grad))
        width = logits.shape[1]
    assert width == 16
    for plain, with_rows in zip(*outcomes, strict=True):
        torch.testing.assert_close(with_rows, plain)


class Kernels:
    """CUDA's kernels of synchronised batch norm, written out for one rank from their definitions."""

    def batch_norm_stats(self, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows = x.transpose(0, 1).flatten(1)
        return rows.mean(1), torch.rsqrt(rows.var(1, correction=0) + eps)

    def batch_norm_gather_stats_with_counts(
        self, x: Tensor, means: Tensor, scales: Tensor, mean_C: Tensor, variance_C: Tensor, momentum: float,
        eps: float, rows_W: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert means.shape == scales.shape == (1, x.shape[1])
        n = float(rows_W[0])
        assert n == x.numel() // x.shape[1]
        mean_C.lerp_(means[0], momentum)
        variance_C.lerp_((scales[0] ** -2 - eps) * n / (n - 1), momentum)
        return means[0], scales[0]

    def batch_norm_elemt(
        self, x: Tensor, weight: Any, bias: Any, mean: Tensor, scale: Tensor, _: float
    ) -> Any:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        out = (x - mean.view(shape)) * scale.view(shape)
        return out if weight is None else out * weight.view(shape) + bias.view(shape)

    def batch_norm_backward_reduce(
        self, grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Any, *_: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        shape = (1, -1) + (1,) * (x.dim() - 2)
        sum_dy, sum_dy_xmu = grad.sum(dims), (grad * (x - mean.view(shape))).sum(dims)
        return sum_dy, sum_dy_xmu, sum_dy_xmu * scale, sum_dy

    def batch_norm_backward_elemt(
        self, grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Any, sum_dy: Tensor,
        sum_dy_xmu: Tensor, rows_W: Tensor,
    ) -> Tensor:  # fmt: skip
        shape, n = (1, -1) + (1,) * (x.dim() - 2), float(rows_W.sum())
        centred = grad - sum_dy.view(shape) / n
        centred = centred - (x - mean.view(shape)) * (scale**2 * sum_dy_xmu / n).view(shape)
        factor = scale if weight is None else scale * weight
        return centred * factor.view(shape)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3, 3)])
def test_synchronised_norm_is_pytorchs_batch_norm(
    shape: tuple[int, ...], affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in dir(Kernels):
        if name.startswith("batch_norm"):
            monkeypatch.setattr(torch, name, getattr(Kernels(), name))
    torch.manual_seed(0)
    x, seed = torch.randn(*shape, dtype=torch.float64) * 3 + 2, torch.randn(*shape, dtype=torch.float64)
    outcomes = []
    for ours in (True, False):
        one = x.clone().requires_grad_()
        weight = torch.linspace(1, 2, 5, dtype=torch.float64).requires_grad_() if affine else None
        bias = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_() if affine else None
        mean, variance = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
        if ours:
            out = Synchronised.apply(one, weight, bias, mean, variance, 1e-5, 0.1)
        else:
            out = F.batch_norm(one, mean, variance, weight, bias, True, 0.1, 1e-5)
        (out * seed).sum().backward()
        grads = [t.grad for t in (one, weight, bias) if t is not None]
        outcomes.append([out, mean, variance, *grads])
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_products_are_in_tf32_while_measuring_and_exact_where_nearly_equal_numbers_are_compared() -> None:
    settings = torch.backends.cuda.matmul
    assert not settings.allow_tf32, "PyTorch's default, in which training computes"
    with measuring():
        assert settings.allow_tf32
        assert not torch.is_grad_enabled()
        with exact_products():
            assert not settings.allow_tf32
        assert settings.allow_tf32
    assert not settings.allow_tf32
    assert torch.is_grad_enabled()
