"""What PyTorch's operations are to a device: what they write to, launch and compute, by their schemas."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FREE = {
    aten.detach.default, aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default,
    aten.new_empty.default, aten.new_empty_strided.default, aten._reshape_alias.default, aten.alias.default,
    aten._unsafe_view.default, aten.lift_fresh.default, aten.record_stream.default,
}  # fmt: skip
"""Operations that launch nothing."""


class Facts(NamedTuple):
    """What an operation's schema says, which takes long to ask."""

    name: str
    written: tuple[tuple[int, str], ...]
    """Number and name of the arguments that it writes to."""
    returns: int
    returns_written: bool
    """Whether it returns these."""
    free: bool
    """It launches nothing, as a view."""
    flop: Any
    """Counts its arithmetic; None for what has none."""


@cache
def facts_of(func: Any) -> Facts:
    """What is known of an operation."""
    arguments, returns = func._schema.arguments, func._schema.returns
    info = returns[0].alias_info if returns else None
    return Facts(
        func.name().removeprefix("aten::"),
        tuple(
            (number, a.name) for number, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write
        ),
        len(returns),
        bool(returns) and all(r.alias_info is not None and r.alias_info.is_write for r in returns),
        func in FREE or (info is not None and not info.is_write),
        flop_registry.get(func._overloadpacket),
    )


def values_of(arguments: tuple[tuple[int, str], ...], args: Any, kwargs: Any) -> list[Any]:
    """What was given for some arguments, by number and name; lists of tensors one by one."""
    values: list[Any] = []
    for number, name in arguments:
        value = args[number] if number < len(args) else kwargs.get(name)
        values += value if isinstance(value, list | tuple) else [value]
    return values
