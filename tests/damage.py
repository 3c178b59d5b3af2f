"""Seeded damage to the bytes of a file, and to the values of a JSON document: what readers are tried on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from medunifier_cli.errors import MuError

WORDS = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b'"', b"'", b",", b"/", b"../", b"[", b"{", b"<", b"&",
    b"-1", b"1e400", b"9" * 5000, b"99999999999999999999", b"nan", b"null", b"true", b"x" * 5000, b"[" * 3000,
    b"<a>" * 3000, b'"\\ud800"', b"\x1b[31m", "\u202e\u0661".encode(),
    b"patient00000000000000000001/study1/view1_frontal.jpg",
)  # fmt: skip
"""What fuzzers and real damage put into text files."""
VALUES: tuple[Any, ...] = (
    None, True, -1, 2**70, 10**400, 1.5, float("nan"), "", "x" * 5000, "\ud800", "/etc/passwd", "../x",
    "a\0b", "Lungs are clear.", [], {}, [[]], {"a": 1}, [1], ["a", None],
)  # fmt: skip
"""What stands in the place of another value."""


def damaged(body: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to three changes: a bit, a piece gone or twice, one of `WORDS`, the end cut off."""
    for _ in range(int(rng.integers(1, 4))):
        at, kind = int(rng.integers(0, len(body) + 1)), int(rng.integers(0, 6))
        size = int(rng.integers(1, 40))
        if kind == 0 and at < len(body):
            body = body[:at] + bytes([body[at] ^ 1 << int(rng.integers(0, 8))]) + body[at + 1 :]
        elif kind == 1:
            body = body[:at] + body[at + size :]
        elif kind == 2:
            body = body[: at + size] + body[at:]
        elif kind == 3 and rng.random() < 0.3:
            body = body[:at]
        else:
            cut = size if kind == 4 else 0
            body = body[:at] + WORDS[int(rng.integers(0, len(WORDS)))] + body[at + cut :]
    return body


def damaged_inside(body: bytes, rng: np.random.Generator) -> bytes:
    """As `damaged`; of a gzipped file, half of the time its contents and not its packing."""
    if body.startswith(b"\x1f\x8b") and rng.random() < 0.5:
        return gzip.compress(damaged(gzip.decompress(body), rng), 1)
    return damaged(body, rng)


def edited(document: Any, rng: np.random.Generator) -> Any:
    """A JSON document of which one value, at any depth, is another, gone, or there twice."""
    places = list(_places(document))
    parent, key = places[int(rng.integers(0, len(places)))]
    choice = int(rng.integers(0, 5))
    if choice == 0:
        del parent[key]
    elif choice == 1 and isinstance(parent, list):
        parent.insert(0, parent[key])
    else:
        parent[key] = VALUES[int(rng.integers(0, len(VALUES)))]
    return document


def edited_json(body: bytes, rng: np.random.Generator) -> bytes:
    """As `edited`, for a file."""
    return json.dumps(edited(json.loads(body), rng)).encode()


def ends_well(read: Callable[[], object]) -> MuError | None:
    """Call a reader; what it raises must be a MuError of one clean line.

    Returns:
        The error, None if it read.
    """
    try:
        read()
    except MuError as error:
        line = str(error)
        assert line.isprintable(), line
        assert 0 < len(line) < 300, line
        return error
    return None


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    for key in document if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])
