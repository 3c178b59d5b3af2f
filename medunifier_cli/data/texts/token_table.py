"""The token ids of every text of a split, computed once and cached in the folder of the shards.

A training run reads each text many times and has to know in advance which samples have one. So the metadata
of a split is read once per combination of sections and tokenizer; loader workers then open no JSON at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.report import compose, digest, token_digest
from medunifier_cli.data.texts.tokenizer import LONGEST_TEXT, TextTokenizer
from medunifier_cli.recipe.schema import DataConfig, TextConfig
from medunifier_cli.run.cache import cached
from medunifier_cli.terminal.say import say

CACHE = ".cache"
"""Folder beside the shards; it may be deleted at any time."""
CHUNK = 1024
"""Texts tokenized at once."""
LOOKED_AT = 100
"""Samples whose sections a message names."""
VERSION = 2
"""Version of the cache's contents; part of its file name."""


@dataclass(frozen=True)
class TokenTable:
    """Token ids of every sample of a split, end to end."""

    ids_N: NDArray[np.int32]
    """Token ids, nothing padded."""
    start: NDArray[np.int64]
    """[n + 1]; the ids of sample i are ids_N[start[i] : start[i + 1]], none where the text is empty."""
    digest: NDArray[np.int64]
    """[n], hash of the whole text, see `report.digest`."""
    token_digest: NDArray[np.int64]
    """[n], hash of the sample's ids, see `report.token_digest`. Texts that differ only after the last token
    that is read, or in characters that the tokenizer does not know, have the same."""


def texts_of(shards: Shards, sections: Sequence[str], data: DataConfig, text: TextConfig) -> Iterator[str]:
    """Composed text of every sample, in order; empty where `data.require` is not met."""
    for i in range(len(shards)):
        raw = shards.meta(i).get("sections") or {}
        yield compose(raw, sections, data.require, text.strip_deidentified, text.section_marks)


def sections_there(shards: Shards) -> str:
    """The sections that the first samples of a split have, for messages: `findings, impression`."""
    metas = (shards.meta(i) for i in range(min(LOOKED_AT, len(shards))))
    names = {name for meta in metas for name, text in (meta.get("sections") or {}).items() if text}
    return ", ".join(sorted(names)) or "none"


def token_table(
    shards: Shards, sections: Sequence[str], data: DataConfig, text: TextConfig, tokenizer: TextTokenizer
) -> TokenTable:
    """The table of a split, read from the cache or computed and cached.

    If the folder cannot be written to, every run computes the table again.
    """
    # everything the ids depend on
    rule = [VERSION, shards.fingerprint, list(sections), data.require, text.strip_deidentified]
    rule += [text.max_tokens, tokenizer.fingerprint, text.section_marks]
    name = hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:16]
    path = shards.folder / CACHE / f"{shards.split}-{name}.h5"

    def tokens() -> dict[str, NDArray[Any]]:
        texts = texts_of(shards, sections, data, text)
        return vars(_build(texts, len(shards), text.max_tokens, tokenizer))

    return TokenTable(**cached(path, json.dumps(rule), tokens, shards.folder))


def prompt_table(
    prompts: Sequence[str], chosen_n: NDArray[np.int64], text: TextConfig, tokenizer: TextTokenizer
) -> TokenTable:
    """The table of a split whose samples have prompts in place of texts.

    Args:
        prompts: different texts.
        chosen_n: index of each sample's prompt, -1 for none.
    """
    return _build((prompts[i] if i >= 0 else "" for i in chosen_n), len(chosen_n), text.max_tokens, tokenizer)


def _build(texts: Iterator[str], n: int, max_tokens: int, tokenizer: TextTokenizer) -> TokenTable:
    start = np.zeros(n + 1, np.int64)
    digests, token_digests = np.zeros(n, np.int64), np.zeros(n, np.int64)
    empty = np.empty(0, np.int32)
    pieces = [empty]
    row = long = 0
    while chunk := list(islice(texts, CHUNK)):
        for words, ids in zip(chunk, tokenizer.encode_many(chunk, max_tokens), strict=True):
            piece = np.array(ids, np.int32) if words else empty
            long += len(words) > LONGEST_TEXT
            digests[row], token_digests[row] = digest(words), token_digest(piece)
            start[row + 1] = start[row] + len(piece)
            pieces.append(piece)
            row += 1
        # Merged now and then: each small array has about 100 bytes of header, nearly as much as its ids.
        pieces = [np.concatenate(pieces)] if len(pieces) > 64 * CHUNK else pieces
    if long:
        say(f"warning: {long:,} texts are longer than {LONGEST_TEXT:,} characters; the rest is not read")
    return TokenTable(np.concatenate(pieces), start, digests, token_digests)
