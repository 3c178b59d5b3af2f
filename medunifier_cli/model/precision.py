"""Precision of a computation: casts to fp32 at least, and where a GPU may use TF32 for matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def at_least_fp32(x: Tensor) -> Tensor:
    """bf16 and fp16 -> fp32; fp32 and fp64 are returned as they are."""
    # not `x.float()`: the tests compare with slow references in fp64, and a cast down would hide small errors
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@contextmanager
def measuring() -> Iterator[None]:
    """Without gradient, and with matrix products in TF32 on a GPU; a CPU computes as ever.

    For whatever encodes or decodes outside of training: a GPU's tensor cores do not compute in fp32. TF32
    keeps 10 bits of each factor, where bf16 keeps 7, and sums in fp32. Not mixed precision: that of a
    training run would give numbers which the same weights do not give elsewhere.
    """
    with torch.no_grad(), _products_in_tf32(True):
        yield


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products in fp32, inside of `measuring` too: where nearly equal numbers are compared."""
    with _products_in_tf32(False):
        yield


@contextmanager
def _products_in_tf32(on: bool) -> Iterator[None]:
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    settings.allow_tf32 = on
    try:
        yield
    finally:
        settings.allow_tf32 = before


def half_type(device: torch.device) -> torch.dtype | None:
    """The type in which autocast has matrix products computed on a GPU now; None without it, and on a CPU."""
    mixed = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if mixed else None


def halved(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` for the residual beside a layer, and for the layer: in half precision where it is cast anyway.

    Without this the gradient of the cast is a copy in fp32, which is then added to that of the residual. Here
    they are added as they come, to the same bits.
    """
    dtype = half_type(x.device)
    if dtype is None or x.dtype != torch.float32 or torch.compiler.is_compiling():  # which fuses them itself
        return x, x
    whole, half = _Halved.apply(x, dtype)
    return whole, half


def concatenate(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` for a layer that autocast computes in half precision: cast before, so that less is moved.

    One part in fp32 would otherwise make all of them fp32 for the time in between.
    """
    dtype = half_type(parts[0].device)
    return torch.cat([part if dtype is None else part.to(dtype) for part in parts], dim=dim)


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # a view: an input that comes back as it is would be taken for no result of this function
        return x.view_as(x), x.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # one kernel, which reads both types: no copy of the second one in fp32
        return grads[0] + grads[1], None


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """PyTorch's `scaled_dot_product_attention`; in fp32 where a CPU's autocast would have it in bf16.

    The gradient of PyTorch's kernel in bf16 takes four times as long on a CPU as that in fp32, where all
    other matrix products take a half.
    """
    if q.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, **options)
    with full_precision(q.device):
        mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **options)
    return mixed.to(torch.get_autocast_dtype("cpu"))


class _OwnAttention(TorchFunctionMode):
    """While open, other people's layers compute attention by `attention`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            func = attention
        return func(*args, **(kwargs or {}))


def own_attention(device: torch.device) -> AbstractContextManager[Any]:
    """`attention` in place of PyTorch's within other people's layers, where it makes a difference."""
    mixed = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return _OwnAttention() if mixed else nullcontext()


def full_precision(device: torch.device) -> torch.autocast:
    """No mixed precision in this block; tensors without data, as in `mu check`, go by the CPU's flag."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
