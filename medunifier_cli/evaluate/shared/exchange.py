"""Exchange work and its results between the ranks of one command, pickled, over torch's own connections.

Networks do not travel: a reference to one stands for that which each rank has loaded itself.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medunifier_cli.distributed import world

LOOK = (0.0005, 0.02)
"""Seconds between two looks at whether an exchange is complete: at first, and at most."""
PART, END, FAILED = range(3)
"""What a rank brings to a round: a part, nothing any more, or the error that it ran into."""

_known: list[object] = []


def remember(values: Iterable[object]) -> None:
    """Let references to these travel in their place; called with the same ones, in order, on all ranks."""
    _known.extend(values)


def broadcast(content: bytes) -> None:
    """On the main rank: send it to all others, which `receive` it."""
    _wait(dist.broadcast(_tensor_of(content), 0, async_op=True))


def receive(length: int) -> bytes:
    """On another rank: what the main one broadcasts, `length` bytes."""
    content = torch.empty(length, dtype=torch.uint8)
    _wait(dist.broadcast(content, 0, async_op=True))
    return content.numpy().tobytes()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._numbers = {id(value): number for number, value in enumerate(_known)}

    def persistent_id(self, value: Any) -> int | None:
        number = self._numbers.get(id(value))
        if number is None and isinstance(value, nn.Module):
            raise RuntimeError("a network that `everywhere` has not loaded")
        return number


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, number: Any) -> object:
        return _known[number]


def pickled(value: Any) -> bytes:
    """A value for another rank.

    Raises:
        RuntimeError: there is a network in it that not all ranks have.
    """
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def unpickled(content: bytes) -> Any:
    """What another rank has `pickled`."""
    return _Unpickler(io.BytesIO(content)).load()


def bring(kind: int, content: bytes = b"") -> tuple[list[tuple[int, int]], list[Any]]:
    """Exchange what each rank brings.

    Returns:
        On all ranks the kind and the bytes of each rank's; on the main one the values of the other ranks.
    """
    with world.alone(False):
        ranks, is_main = world.size(), world.is_main()
        world.tick()
    head = torch.tensor([kind, len(content)])
    heads_R2 = [torch.empty_like(head) for _ in range(ranks)]
    _wait(dist.all_gather(heads_R2, head, async_op=True))
    heads = [(int(of_rank[0]), int(of_rank[1])) for of_rank in heads_R2]
    longest = max(length for _, length in heads)
    if not longest:
        return heads, [None] * (ranks - 1)
    own = torch.zeros(longest, dtype=torch.uint8)
    own[: len(content)] = _tensor_of(content)
    rows = [torch.empty_like(own) for _ in range(ranks)] if is_main else None
    _wait(dist.gather(own, rows, 0, async_op=True))
    parts = zip(rows or [], heads, strict=False)
    values = [unpickled(row[:n].numpy().tobytes()) if n else None for row, (_, n) in parts]
    return heads, values[1:]


def _tensor_of(content: bytes) -> Tensor:
    if not content:  # which `frombuffer` refuses
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _wait(work: Any) -> None:
    """Wait for a collective operation in Python, where signal handlers run, and not in C++."""
    pause = LOOK[0]
    while not work.is_completed():
        time.sleep(pause)
        pause = min(2 * pause, LOOK[1])
    work.wait()
