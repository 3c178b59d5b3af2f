"""Precision of a computation: casts to fp32 at least, and where a GPU may use TF32 for matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GPU = "cuda"


def at_least_fp32(x: Tensor) -> Tensor:
    """bf16 and fp16 -> fp32; fp32 and fp64 are returned as they are."""
    # not `x.float()`: the tests compare with slow references in fp64, and a cast down would hide small errors
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm(x)`; on a GPU in mixed precision with bf16, its result is bf16 as well.

    Autocast has norms read and write fp32, and each product that follows casts that anew and keeps a copy.
    The statistics are fp32 either way. Shapes as of the norm.
    """
    if x.device.type != GPU or not torch.is_autocast_enabled(GPU):
        return norm(x)  # type: ignore[no-any-return]
    if torch.get_autocast_dtype(GPU) != torch.bfloat16:
        return norm(x)  # type: ignore[no-any-return]
    if x.dtype == torch.float32:
        return norm(x).bfloat16()  # type: ignore[no-any-return]
    weight, bias = norm.weight.bfloat16(), norm.bias.bfloat16()
    with torch.autocast(GPU, enabled=False):
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


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


def full_precision(device: torch.device) -> torch.autocast:
    """No mixed precision in this block; tensors without data, as in `mu check`, go by the CPU's flag."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
