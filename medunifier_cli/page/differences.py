"""Mark the words in which two texts differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

Pieces = list[tuple[str, bool]]
"""A text in pieces of whole words, in order; True where the other text has no such words there."""


def differences(text: str, other: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces, marked where they differ in words; letter case and punctuation do not count.

    Words that both texts have in another order are marked too: which of them belong together is unknown.
    """
    words, others = text.split(), other.split()
    matcher = SequenceMatcher(None, [_plain(w) for w in words], [_plain(w) for w in others], autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    return (
        _pieces(words, [(block.a, block.size) for block in blocks]),
        _pieces(others, [(block.b, block.size) for block in blocks]),
    )


def _plain(word: str) -> str:
    return re.sub(r"\W", "", word).lower() or word


def _pieces(words: Sequence[str], same: Sequence[tuple[int, int]]) -> Pieces:
    pieces: Pieces = []
    at = 0
    for start, size in same:
        if start > at:
            pieces.append((" ".join(words[at:start]), True))
        pieces.append((" ".join(words[start : start + size]), False))
        at = start + size
    if at < len(words):
        pieces.append((" ".join(words[at:]), True))
    return pieces
