"""Operations on tensors without data, whose results are remembered by the shapes of what goes in.

A model of many equal layers asks for the same shapes again and again, and PyTorch works each of them out in
Python, which takes most of the time of a step without data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Shapes:
    """Calls operations on meta tensors, each once for the same shapes; after that the result is made anew."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}
        self._fresh: dict[Any, bool] = {}

    def call(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """`func(*args, **kwargs)`, or tensors like those that it returned."""
        if func not in self._fresh:
            self._fresh[func] = _gives_new_tensors(func)
        key = _key_of(func, args, kwargs) if self._fresh[func] else None
        if key is None:
            return func(*args, **kwargs)
        if key not in self._known:
            result = func(*args, **kwargs)
            self._known[key] = _described(result, args, kwargs)
            return result
        known = self._known[key]
        return func(*args, **kwargs) if known is None else _made(known)


def tensors_in(*values: Any) -> Iterator[Tensor]:
    """All tensors among arguments, which are nested in lists, tuples and mappings; PyTorch's own walk over
    them takes five times as long."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same lists, tuples and mappings, with `change` of everything that is in them."""
    if isinstance(value, list):
        return [mapped(change, one) for one in value]
    if isinstance(value, tuple):
        inner = [mapped(change, one) for one in value]
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    if isinstance(value, dict):
        return {name: mapped(change, one) for name, one in value.items()}
    return change(value)


def _gives_new_tensors(func: Any) -> bool:
    """Whether an operation neither writes to its arguments nor returns a view of one, by its schema."""
    schema = func._schema
    return all(part.alias_info is None for part in (*schema.arguments, *schema.returns))


def _key_of(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Hashable | None:
    """What decides the shapes of the result; None where values of a tensor may."""
    parts: list[Any] = [func]

    def add(value: Any) -> bool:
        if isinstance(value, Tensor):
            parts.append((value.shape, value.stride(), value.dtype))
            return value.is_meta
        if isinstance(value, list | tuple):
            parts.append(len(value))
            return all(map(add, value))
        # 1, 1.0 and True are equal, and give results of different types
        parts.append((type(value), value))
        return isinstance(value, Hashable)

    known = all(map(add, args)) and all(add(name) and add(kwargs[name]) for name in sorted(kwargs))
    return tuple(parts) if known else None


def _described(result: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Shapes of a result, nested as it is; None where it holds a tensor that is not new, or anything else."""
    storages = [id(tensor.untyped_storage()) for tensor in tensors_in(result)]
    before = {id(tensor.untyped_storage()) for tensor in tensors_in(args, dict(kwargs))}
    if len(set(storages)) < len(storages) or before & set(storages):
        return None

    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            made = (value.shape, value.stride(), value.dtype)
            # part of something larger would take less memory when it is made anew
            same = (
                value.is_meta and _made(made).untyped_storage().nbytes() == value.untyped_storage().nbytes()
            )
            return made if same else None
        if isinstance(value, list | tuple):
            inner = [described(one) for one in value]
            return None if any(one is None for one in inner) else (type(value) is list, inner)
        return () if value is None else None

    return described(result)


def _made(known: Any) -> Any:
    if not known:  # what the operation left out, such as a gradient that nobody asked for
        return None
    if len(known) == 2:
        is_list, inner = known
        made = [_made(one) for one in inner]
        return made if is_list else tuple(made)
    shape, stride, dtype = known
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
