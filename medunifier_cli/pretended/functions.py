"""What CUDA does with a function and the `meta` device does not: autocast, dropout, attention, batch norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medunifier_cli.distributed import world
from medunifier_cli.model import norm
from medunifier_cli.model.attention import sequences
from medunifier_cli.model.attention.sequences import Lengths
from medunifier_cli.pretended.device import CUDA, Pretended, Trace
from medunifier_cli.pretended.shapes import mapped, tensors_in

LOW = {
    F.linear, F.conv2d, F.conv_transpose2d, F.conv3d, torch.conv2d, torch.conv_transpose2d, torch.matmul,
    torch.mm, torch.bmm, torch.addmm, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__,
}  # fmt: skip
"""Functions that autocast computes in half precision."""
HIGH = {
    F.layer_norm, F.cross_entropy, F.mse_loss, F.normalize, F.softmax, F.log_softmax, F.group_norm,
    torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.cumsum, Tensor.exp, Tensor.log,
}  # fmt: skip
"""Functions that autocast computes in fp32."""
CAPABILITY = (9, 0)
"""An H100's."""
HALVES = (torch.bfloat16, torch.float16)
ALIGNED = 16
"""Columns of which an attention mask has a multiple, or is padded to."""


class Autocast(TorchFunctionMode, ABC):
    """What a card's autocast, dropout and attention make of functions of tensors that are on it.

    Args:
        device: type of the device whose autocast says whether precision is mixed.
        half: what products read then.
    """

    def __init__(self, device: str, half: torch.dtype) -> None:
        super().__init__()
        self.device, self.half = device, half
        self.cast: dict[int, Tensor] = {}

    @abstractmethod
    def is_here(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the card."""

    @abstractmethod
    def attend(self, mixed: bool, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """In place of `scaled_dot_product_attention`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(map(self.is_here, tensors_in(args, kwargs))):
            return func(*args, **kwargs)
        mixed = torch.is_autocast_enabled(self.device)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self.attend(mixed, *args, **kwargs)
        if mixed and func in LOW:
            return func(*mapped(self.low, args), **mapped(self.low, kwargs))
        if mixed and func in HIGH:
            return func(*mapped(self._high, args), **mapped(self._high, kwargs))
        return func(*args, **kwargs)

    def low(self, value: Any) -> Any:
        """A value as a product reads it under autocast."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or not self.is_here(value):
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.half)
        if id(value) not in self.cast:  # a weight is cast once a pass
            self.cast[id(value)] = value.to(self.half)
        return self.cast[id(value)]

    def _high(self, value: Any) -> Any:
        here = isinstance(value, Tensor) and value.dtype in HALVES and self.is_here(value)
        return value.float() if here else value


class Functions(Autocast):
    """CUDA's autocast to bf16, and functions of several kernels."""

    def __init__(self, trace: Trace) -> None:
        super().__init__("cuda", torch.bfloat16)
        self.trace = trace

    def is_here(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the pretended GPU."""
        return isinstance(tensor, Pretended)

    def attend(  # type: ignore[override]
        self, mixed: bool, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **_: Any,
    ) -> Tensor:  # fmt: skip
        """The mask as numbers, and one kernel."""
        if mixed:
            q, k, v = self.low(q), self.low(k), self.low(v)
        if attn_mask is not None:  # a boolean mask becomes numbers, in aligned rows
            shut = torch.full((), -1e9, device=CUDA, dtype=q.dtype)
            attn_mask = torch.where(attn_mask, torch.zeros((), device=CUDA, dtype=q.dtype), shut)
            columns = attn_mask.shape[-1]
            attn_mask = F.pad(attn_mask, (0, -columns % ALIGNED))[..., :columns]
        attended: Tensor = _Attention.apply(q, k, v, attn_mask, self.trace)
        return attended


class _Attention(torch.autograd.Function):
    """One kernel forward, flash without a mask and the memory-efficient one with it; three backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, trace: Trace) -> Tensor:
        out = torch.empty_like(q)
        norms = torch.empty(q.shape[:3], device=CUDA, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, norms, *(() if mask is None else (mask,)))
        ctx.trace = trace
        name = "attention" if mask is None else "masked attention"
        _note(trace, name, 4, q, k, [q, k, v, out])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors[:4]
        _note(ctx.trace, "attention backward", 10, q, k, [q, k, v, out, grads[0], q, k, v], 3)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None


class _Flash(torch.autograd.Function):
    """`sequences.flash`: what `_Attention` is without a mask, for sequences of their own lengths."""

    trace: Trace

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, of_q: Lengths, of_k: Lengths, dropout: float, causal: bool
    ) -> Tensor:
        starts: Any = (of_q.start_B1, of_k.start_B1)
        lengths = [start.inner.diff() for start in starts]
        if any(int(own.sum()) != len(x) for own, x in zip(lengths, (q, k), strict=True)):
            raise RuntimeError("sequences end elsewhere than their rows")
        if any(int(own.max()) != of.longest for own, of in zip(lengths, (of_q, of_k), strict=True)):
            raise RuntimeError("the longest sequence has another length")
        if {x.dtype for x in (q, k, v)} != {torch.bfloat16} or of_q.start_B1.dtype != torch.int32:
            raise RuntimeError("the kernel does not take this")
        # whole blocks are counted, as flop counters do: what a causal mask leaves out too
        ctx.products = float((lengths[0] * lengths[1]).sum()) * q.shape[1] * q.shape[2]
        out, norms = torch.empty_like(q), torch.empty(q.shape[1], len(q), device=CUDA)
        ctx.save_for_backward(q, k, v, out, norms)
        size = sum(t.numel() * t.element_size() for t in (q, k, v, out))
        _Flash.trace.note("attention", 4 * ctx.products, size, q.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, _ = ctx.saved_tensors
        size = sum(t.numel() * t.element_size() for t in (q, k, v, out, grads[0], q, k, v))
        _Flash.trace.note("attention backward", 10 * ctx.products, size, q.dtype, 3)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None, None, None


class _BatchNorm(torch.autograd.Function):
    """`model.norm.Synchronised`: two passes over the input each way, and an exchange."""

    trace: Trace

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor:
        statistics = torch.empty(2, x.shape[1], device=CUDA)
        world.collect_rows(statistics)
        ctx.save_for_backward(x, weight, statistics)
        out = torch.empty_like(x)
        _BatchNorm.trace.note("batch norm", 0.0, 3 * x.numel() * x.element_size(), x.dtype, 3)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        world.all_sum(statistics)
        _BatchNorm.trace.note("batch norm backward", 0.0, 5 * x.numel() * x.element_size(), x.dtype, 3)
        affine = None if weight is None else torch.empty_like(weight)
        return torch.empty_like(x), affine, affine, None, None, None, None


def _note(
    trace: Trace, name: str, per: int, q: Tensor, k: Tensor, tensors: list[Tensor], launches: int = 1
) -> None:
    flop = float(per * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3])
    trace.note(name, flop, sum(t.numel() * t.element_size() for t in tensors), q.dtype, launches)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not p:
        return x
    dropped: Tensor = torch.native_dropout(x, p, True)[0]
    return dropped


@contextmanager
def functions_of_cuda(trace: Trace) -> Iterator[Functions]:
    """Imitate them for the time of a block."""
    _BatchNorm.trace = _Flash.trace = trace
    with (
        mock.patch.object(norm, "Synchronised", _BatchNorm),
        mock.patch.object(sequences, "flash", _Flash.apply),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=CAPABILITY),
        Functions(trace) as functions,
    ):
        yield functions
