"""Damage files at random, with a seed: bytes and values that readers have stumbled over."""

from __future__ import annotations

import random
from typing import Any

PIECES = (
    b"\0", b"\xff", b"[", b"{", b"[" * 500, b'"', b"\\ud800", b"9" * 400, b"9" * 5000, b"\xe2\x80\xa8", b"\r",
    b"\n", b",", b":", b"NaN", b"-", b"1e999", b"null", b"\x1b[31m", b"&a *a", b"!!int ''",
)  # fmt: skip
VALUES = (
    None, True, 0, -1, 3.5, float("nan"), float("inf"), 10**30, 10**400, "", "x", "\u2028\x1b[31m",
    "/etc/hosts", "a" * 5000, [], [1], ["a"], {}, {"a": 1}, [[]],
)  # fmt: skip


def changed_bytes(content: bytes, draws: random.Random) -> bytes:
    """One to three places of the content exchanged, cut out or filled with a hostile piece."""
    changed = bytearray(content)
    for _ in range(draws.randint(1, 3)):
        place = draws.randrange(len(changed) + 1)
        piece = draws.choice((*PIECES, bytes([draws.randrange(256)])))
        changed[place : place + draws.choice((0, 1, 20))] = piece
    return bytes(changed)


def changed_values(value: Any, draws: random.Random) -> Any:
    """A document with one value of it exchanged, taken out or given twice."""
    if isinstance(value, dict) and value and draws.random() < 0.85:
        value, key = dict(value), draws.choice(list(value))
        if draws.random() < 0.2:
            del value[key]
        else:
            value[key] = changed_values(value[key], draws)
        return value
    if isinstance(value, list) and value and draws.random() < 0.85:
        place = draws.randrange(len(value))
        times = draws.choice((0, 1, 1, 1, 2))
        new = [changed_values(value[place], draws)] if times == 1 else [value[place]] * times
        return [*value[:place], *new, *value[place + 1 :]]
    return draws.choice(VALUES)
