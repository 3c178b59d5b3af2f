"""A pretended GPU: real code runs on it without any data, and each launch, copy and wait is counted.

Float tensors are on PyTorch's `meta` device and hold nothing; integers hold what they are, so that a step's
own planning works. Python sees `cuda:0`. What a kernel of CUDA would do but `meta` does not (autocast,
dropout, attention) is imitated in `functions.py`.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medunifier_cli.pretended.operations import facts_of, values_of
from medunifier_cli.pretended.record import Launch, Transfer
from medunifier_cli.pretended.shapes import Shapes, mapped, tensors_in

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
ON_DEVICE = ("cuda", "meta")
"""What Python and PyTorch's C++ call the device."""
SMALL = 4096
"""Elements up to which a float tensor that is made on the device keeps its values."""
ROUNDED = 512
"""Bytes of which allocations are multiples, as of PyTorch's allocator."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
WAITING = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.bincount.default}
"""Operations whose result has a shape that only the device knows."""


class Pretended(torch.Tensor):
    """A tensor that says it is on `cuda:0`; what it holds, if anything, is `inner`."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    inner: torch.Tensor  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        # made where no mode is on: in a handler of the trace's, or by who switches them off
        shape = torch.empty_strided(inner.size(), inner.stride(), dtype=inner.dtype, device="meta")
        made: Pretended = torch.Tensor._make_subclass(cls, shape, False, device_for_backend_keys=CUDA)
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def new_tensor(self, data: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=self.dtype, device=CUDA)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.prim.device.default:
            return CUDA
        raise RuntimeError(f"{func} outside of the trace")


@dataclass
class _Event:
    """In place of `torch.cuda.Event`."""

    trace: Trace

    def record(self) -> None:
        """Nothing to record."""

    def synchronize(self) -> None:
        self.trace.note_transfer("event", 0, blocking=True)


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What happened on the pretended device since `clear`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[Launch] = []
        self.transfers: list[Transfer] = []
        self.part = ""
        self.now = self.peak = 0
        self._holders: Counter[int] = Counter()
        self._size: dict[int, int] = {}
        self._pinned: set[int] = set()
        self._shapes = Shapes()

    def clear(self) -> None:
        """Forget what happened; what lives stays, and is the new peak."""
        self.launches, self.transfers, self.peak = [], [], self.now

    def wrap(self, inner: torch.Tensor) -> Pretended:
        """A tensor of the device, whose memory is counted as long as anybody holds it."""
        made = Pretended(inner)
        storage = inner.untyped_storage()
        key = storage._cdata
        if not self._holders[key]:
            self._size[key] = -(-storage.nbytes() // ROUNDED) * ROUNDED
            self.now += self._size[key]
            self.peak = max(self.peak, self.now)
        self._holders[key] += 1
        weakref.finalize(made, self._drop, key)
        return made

    def _drop(self, key: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= self._size.pop(key)
            del self._holders[key]

    def note_transfer(self, kind: str, size: int, blocking: bool) -> None:
        """Count a copy or a wait."""
        self.transfers.append(Transfer(kind, size, _caller(), blocking))

    def note(self, name: str, flop: float, size: int, dtype: torch.dtype | None, launches: int = 1) -> None:
        """Count one piece of work of several kernels."""
        way = "backward" if torch._C._current_graph_task_id() != -1 else "forward"
        first = Launch(self.part, way, name, flop, size, str(dtype).removeprefix("torch."))
        self.launches += [first] + [first._replace(flop=0.0, bytes=0)] * (launches - 1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return CUDA
        kwargs = dict(kwargs or {})
        here = any(isinstance(tensor, Pretended) for tensor in tensors_in(args, kwargs))
        device = kwargs.get("device")
        if not here and (device is None or torch.device(device).type not in ON_DEVICE):
            return self._on_cpu(func, args, kwargs)
        if func is aten._to_copy.default:
            return self._copy(args[0], kwargs)
        if func is aten.copy_.default:
            return self._copy_into(args[0], args[1], bool(kwargs.get("non_blocking") or (*args, False)[2]))
        if func is aten._local_scalar_dense.default:
            self.note_transfer("item", 1, blocking=True)
            inner = args[0].inner
            return inner.item() if inner.device.type != "meta" else inner.new_ones((), device="cpu").item()
        if func is aten.equal.default:
            self.note_transfer("equal", 1, blocking=True)
            return True
        indices = args[1] if func in INDEXED else ()
        if func in WAITING or any(getattr(index, "dtype", None) == torch.bool for index in indices):
            self.note_transfer(func.name(), 1, blocking=True)
        if any(isinstance(index, torch.Tensor) and not isinstance(index, Pretended) for index in indices):
            self.note_transfer("index on the CPU", 1, blocking=True)
        if func is aten.bincount.default:  # which `meta` does not have
            return self.wrap(torch.zeros(kwargs.get("minlength") or args[2], dtype=torch.int64))
        return self._run(func, args, kwargs)

    def _on_cpu(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is aten._pin_memory.default:
            made = args[0].clone()
        elif kwargs.pop("pin_memory", None):
            made = func(*args, **kwargs)
        else:
            return func(*args, **kwargs)
        self._pinned.add(made.untyped_storage()._cdata)
        return made

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = list(tensors_in(args, kwargs))
        meta = any(isinstance(t, Pretended) and t.inner.device.type == "meta" for t in tensors)
        if kwargs.get("device") is not None:
            kwargs["device"] = "meta" if meta else "cpu"
            if not tensors:  # a factory: values are kept where they are few, or integers
                shape = func(*args, **{**kwargs, "device": "meta"})
                few = not shape.is_floating_point() or (shape.numel() <= SMALL and "rand" not in func.name())
                return self._made(func, args, kwargs, func(*args, **kwargs) if few else shape)
        facts = facts_of(func)
        written = values_of(facts.written, args, kwargs) if facts.written else []
        if meta:
            for tensor in written:
                if isinstance(tensor, Pretended) and tensor.inner.device.type != "meta":
                    tensor.inner = tensor.inner.to("meta")

        def inner(value: Any) -> Any:
            value = value.inner if isinstance(value, Pretended) else value
            moves = meta and isinstance(value, torch.Tensor) and value.device.type != "meta"
            return value.to("meta") if moves else value

        result = self._shapes.call(func, mapped(inner, args), mapped(inner, kwargs))
        if written and facts.returns_written:
            return self._made(func, args, kwargs, written[0] if facts.returns == 1 else tuple(written))
        return self._made(func, args, kwargs, result)

    def _made(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """The result on the device, counted."""

        def wrapped(value: Any) -> Any:
            bare = isinstance(value, torch.Tensor) and not isinstance(value, Pretended)
            return self.wrap(value) if bare else value

        result = mapped(wrapped, result)
        facts = facts_of(func)
        if facts.free:
            return result
        ins, outs = list(tensors_in(args, kwargs)), list(tensors_in(result))
        size = sum(map(_bytes, ins)) + sum(_bytes(t) for t in outs if not any(t is i for i in ins))
        flop = float(facts.flop(*args, **kwargs, out_val=result)) if facts.flop is not None else 0.0
        self.note(facts.name, flop, size, ins[0].dtype if ins else None)
        return result

    def _copy(self, source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        device, size = kwargs.pop("device", None), source.numel() * source.element_size()
        rushes = kwargs.pop("non_blocking", False)
        if isinstance(source, Pretended):
            if device is None or torch.device(device).type in ON_DEVICE:
                made = aten._to_copy.default(source.inner, **kwargs)
                there: torch.Tensor = self._made(aten._to_copy.default, (source,), {}, made)
                return there
            self.note_transfer("to the CPU", size, blocking=True)
            values: torch.Tensor = _values(source).to(kwargs.get("dtype") or source.dtype)
            return values
        self._note_sent(source, size, rushes)
        kept = source.detach().to(kwargs.get("dtype") or source.dtype).clone()
        return self.wrap(kept.to("meta") if kept.is_floating_point() and kept.numel() > SMALL else kept)

    def _copy_into(self, target: torch.Tensor, source: torch.Tensor, rushes: bool) -> torch.Tensor:
        size = source.numel() * source.element_size()
        if isinstance(target, Pretended) and isinstance(source, Pretended):
            if target.inner.device.type == source.inner.device.type == "cpu":
                target.inner.copy_(source.inner)
            else:
                target.inner = target.inner.to("meta")
            self._made(aten.copy_.default, (target, source), {}, target)
        elif isinstance(target, Pretended):
            if source.dim():
                self._note_sent(source, size, rushes)
            else:
                self.note("copy_", 0.0, size, source.dtype)  # a number travels with the launch
        elif isinstance(source, Pretended):
            pinned = target.untyped_storage()._cdata in self._pinned
            self.note_transfer("to the CPU", size, blocking=not (rushes and pinned))
            target.copy_(_values(source))
        return target

    def _note_sent(self, source: torch.Tensor, size: int, rushes: bool) -> None:
        pinned = source.untyped_storage()._cdata in self._pinned
        self.note_transfer("to the device", size, blocking=not (rushes and pinned))


@contextmanager
def pretended() -> Iterator[Trace]:
    """A pretended GPU for the time of a block, in which `torch` makes and moves tensors to `cuda`."""
    trace = Trace()
    as_tensor, tensor = torch.as_tensor, torch.tensor

    def made_by(real: Any) -> Any:
        def make(data: Any, *args: Any, device: Any = None, **more: Any) -> torch.Tensor:
            made: torch.Tensor = real(data, *args, **more)
            return made if device is None else made.to(device)

        return make

    with (
        mock.patch.object(torch.cuda, "_lazy_init", return_value=None),
        mock.patch.object(torch.cuda, "Event", return_value=_Event(trace)),
        mock.patch.object(torch, "as_tensor", made_by(as_tensor)),
        mock.patch.object(torch, "tensor", made_by(tensor)),
        torch.backends.cudnn.flags(enabled=False),
        trace,
    ):
        yield trace


def _values(source: Pretended) -> torch.Tensor:
    """What a copy to the CPU holds: ones where a float tensor holds nothing."""
    inner = source.inner
    return inner.clone() if inner.device.type != "meta" else torch.ones(inner.shape, dtype=inner.dtype)


def _bytes(tensor: torch.Tensor) -> int:
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1  # an expanded dimension is read once
    return count * tensor.element_size()


def _caller() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        name = frame.f_code.co_filename
        if "medunifier_cli/" in name:
            return f"{name.split('medunifier_cli/')[-1]}:{frame.f_lineno}"
    return "elsewhere"
