"""What the model does on a GPU alone, as far as a CPU can tell: it changes no number but by rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.model import medunifier, precision
from medunifier_cli.model.medunifier import aligned
from medunifier_cli.model.norm import Synchronised
from medunifier_cli.model.precision import concatenate, exact_products, halved, measuring
from medunifier_cli.objectives.itg import TokenLoss


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


@pytest.fixture
def in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a GPU's autocast."""
    monkeypatch.setattr(precision, "half_type", lambda _: torch.bfloat16)


@pytest.mark.usefixtures("in_half")
def test_a_cast_beside_a_residual_has_the_gradient_of_a_cast() -> None:
    torch.manual_seed(0)
    start, weight = torch.randn(9, 4), torch.randn(9, 4)
    gradients = []
    for ours in (True, False):
        x = start.clone().requires_grad_()
        inner = x * 1.5
        whole, half = halved(inner) if ours else (inner, inner.to(torch.bfloat16))
        assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
        (whole * weight + (half * half).float()).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_without_autocast_nothing_is_cast() -> None:
    x, double = torch.randn(3, 2), torch.randn(3, 2, dtype=torch.float64)
    assert halved(x) == (x, x)
    assert concatenate([x, double], dim=1).dtype == torch.float64


@pytest.mark.usefixtures("in_half")
def test_parts_are_cast_before_they_are_joined_to_the_same_values() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3), torch.randn(2, 5).bfloat16()]
    joined = concatenate(parts, dim=1)
    assert joined.dtype == torch.bfloat16
    assert torch.equal(joined, torch.cat(parts, dim=1).bfloat16())


def test_the_loss_of_tokens_is_pytorchs_with_its_gradient() -> None:
    torch.manual_seed(0)
    start, target = torch.randn(7, 16) * 4, torch.randint(13, (7,))
    start[:, 13:] = -torch.inf  # rows of the word head that are filled up
    for dtype, near in ((torch.bfloat16, 2**-7), (torch.float64, 1e-9)):
        outcomes = []
        for ours in (True, False):
            logits = start.to(dtype, copy=True).requires_grad_()
            whole = logits.float() if dtype == torch.bfloat16 else logits
            if ours:
                loss = TokenLoss.apply(logits, target)
            else:
                loss = F.cross_entropy(whole, target, reduction="sum")
            (loss * 0.3).backward()
            assert logits.grad is not None
            assert logits.grad.dtype == dtype
            outcomes.append((loss.detach(), logits.grad))
        torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=near, atol=1e-7)


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
