"""Report text: sections composed into one text and taken apart again, text made readable, and its hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DEIDENTIFIED = re.compile(r"_{2,}|\bX{4,}\b")
"""Placeholders for removed personal data: `___` in MIMIC-CXR, `XXXX` in Open-i."""
_SPACING = (
    (re.compile(r"(?<=\w) ?([-/]) ?(?=\w)"), r"\1"),
    (re.compile(r"(?<=\d) ?([.,]) ?(?=\d)"), r"\1"),
    (re.compile(r"(?<=\w) ?' ?(?=(?:s|t|re|ve|d)\b)"), "'"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r" ([)\],.;:!?%])"), r"\1"),
)
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?:] ))[a-z]")


def compose(
    sections: Mapping[str, str],
    names: Sequence[str],
    require: Literal["any", "all"] = "any",
    strip_deidentified: bool = False,
    marks: bool = False,
) -> str:
    """Join the named sections by a space, in the order of `names`, with white space collapsed.

    Args:
        require: the sections that must not be empty, `any` of them or `all`.
        strip_deidentified: remove placeholders for personal data, see `DEIDENTIFIED`.
        marks: put its name before each section, as in `FINDINGS: `, so that `sections_of` can split the text.

    Returns:
        The text; empty if `require` is not met.
    """
    parts = []
    for name in names:
        part = sections.get(name) or ""
        if strip_deidentified:
            part = DEIDENTIFIED.sub(" ", part)
        parts.append(" ".join(part.split()))
    if require == "all" and not all(parts):
        return ""
    if marks:
        parts = [f"{_heading(name)}: {part}" if part else "" for name, part in zip(names, parts, strict=True)]
    return " ".join(part for part in parts if part)


def sections_of(text: str, names: Sequence[str]) -> dict[str, str]:
    """Split a text that was composed with marks into its sections, by name; empty ones are left out.

    Letter case is ignored. Text before the first mark belongs to the first of `names`, and the parts of a
    section that is marked twice are joined: generated reports do both.
    """
    marks = "|".join(re.escape(_heading(name)).replace(r"\ ", r"\s+") for name in names)
    pieces = re.split(rf"(?i)(?<!\S)({marks})\s*:", text)
    by_heading = {_heading(name): name for name in names}
    words: dict[str, list[str]] = {name: [] for name in names}
    section = names[0]
    for number, piece in enumerate(pieces):
        if number % 2:  # re.split with one group alternates between text and mark
            section = by_heading[" ".join(piece.upper().split())]
        else:
            words[section] += piece.split()
    return {name: " ".join(part) for name, part in words.items() if part}


def _heading(section: str) -> str:
    return section.replace("_", " ").upper()


def readable(decoded: str) -> str:
    """Decoded text with the spacing around punctuation and the capitals of ordinary writing."""
    text = " ".join(decoded.split())
    for pattern, replacement in _SPACING:
        text = pattern.sub(replacement, text)
    return _SENTENCE_START.sub(lambda start: start.group().upper(), text)


def digest(text: str) -> int:
    """63-bit hash of the words of a whole text; ignores letter case and white space."""
    return _hash63(" ".join(text.lower().split()).encode())


def token_digest(ids: NDArray[np.int32]) -> int:
    """63-bit hash of token ids: equal for texts that a model cannot tell apart."""
    return _hash63(ids.astype("<i4").tobytes())


def _hash63(body: bytes) -> int:
    # 63 bits: tensors of hashes are int64, and torch has no full set of unsigned operations.
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little") >> 1
