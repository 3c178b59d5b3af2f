"""What a JSON document takes once it is parsed, estimated from its characters before any of it is parsed.

A list of empty lists takes thirty times the bytes of its file, a report hardly more than its own, so that a
bound in bytes either refuses real annotations or lets a small file take many GiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from medunifier_cli.errors import DataError

DEPTH = 64
"""Levels of nesting that a document may have; ours have less than ten."""
MEMORY = 13 << 26
"""Estimated bytes that one file may take while it is read and once it is parsed: 832 MiB."""
CONTAINERS = 2_000_000
"""Lists and objects that one file may hold. An annotation of MIMIC-CXR in R2Gen's form has 560,000."""
CONTAINER = 200
"""Bytes of a small list or object, measured on Python 3.11: 64 for `[]`, up to 230 for `{"a": 1}`."""
VALUE = 64
"""Bytes of a short text or a number, and of its place in a list or an object."""
_FOUR = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")
_FOUR_TEXT = re.compile("[\U00010000-\U0010ffff]|\\\\u[dD][89abAB]")


class OverBudgetError(DataError):
    """A document that would take more than `mu` lets one file take; the message has no name of a file."""


class Budget:
    """What is left for a file whose parts are parsed one after the other, and kept.

    Args:
        copies: how often the parser holds the characters beside the values that it makes of them.
    """

    left: int
    """Estimated bytes that further parts may take."""

    def __init__(self, copies: int = 1) -> None:
        self.left, self._containers, self._copies = MEMORY, CONTAINERS, copies

    def spend(self, part: bytes | str) -> None:
        """Count a part before it is parsed.

        Raises:
            OverBudgetError: it takes more than is left.
        """
        brackets, commas = (
            (part.count(b"[") + part.count(b"{"), part.count(b","))
            if isinstance(part, bytes)
            else (part.count("[") + part.count("{"), part.count(","))
        )
        self._containers -= brackets
        if self._containers < 0:
            raise OverBudgetError(f"holds more than {CONTAINERS:,} lists and objects")
        characters = len(part) * (self._copies + _width(part))
        self.left -= characters + CONTAINER * brackets + VALUE * commas
        if self.left < 0:
            raise OverBudgetError(f"would take more than {MEMORY >> 20} MiB of memory")


def _width(part: bytes | str) -> int:
    """Bytes that Python may keep for each character of a text: as many as the widest one of it needs."""
    if isinstance(part, bytes):
        if _FOUR.search(part):
            return 4
        return 1 if part.isascii() and b"\\u" not in part else 2
    if _FOUR_TEXT.search(part):
        return 4
    return 1 if part.isascii() and "\\u" not in part else 2


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings lie in one another more than `levels` deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def has_lone_surrogate(value: Any) -> bool:
    """Whether a text in it cannot be written as UTF-8."""
    return any(re.search("[\ud800-\udfff]", text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            rest.extend((*item.keys(), *item.values()))
        elif isinstance(item, list):
            rest.extend(item)


def _children(parent: Any) -> Any:
    return parent.values() if isinstance(parent, dict) else parent
