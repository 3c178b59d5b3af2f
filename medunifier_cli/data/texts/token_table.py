"""Compose and tokenise the texts of a split once, and cache the tokens next to the shards.

A training run reads each text many times and needs to know beforehand which samples have one. So the
metadata of a split is read through once per (sections, tokenizer); workers then open no JSON at all.
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
from medunifier_cli.data.texts.report import TextTokenizer, compose, digest
from medunifier_cli.recipe.schema import DataConfig, TextConfig
from medunifier_cli.run.cache import cached

CACHE = ".cache"
"""Folder beside the shards; it may be deleted at any time."""
CHUNK = 1024
VERSION = 1


@dataclass(frozen=True)
class TextTable:
    """Token ids of every sample of a split, end to end."""

    ids_N: NDArray[np.int32]
    """Token ids, nothing padded."""
    start: NDArray[np.int64]
    """[n + 1]; the ids of sample i are ids_N[start[i]:start[i + 1]]; no ids where the text is empty."""
    digest: NDArray[np.int64]
    """[n], see `text.digest`."""


def texts_of(shards: Shards, sections: Sequence[str], data: DataConfig, text: TextConfig) -> Iterator[str]:
    """Composed text of every sample, in order; empty where the requirement fails."""
    for i in range(len(shards)):
        raw = shards.meta(i).get("sections") or {}
        yield compose(raw, sections, data.require, text.strip_deidentified, text.section_marks)


def text_table(
    shards: Shards, sections: Sequence[str], data: DataConfig, text: TextConfig, tokenizer: TextTokenizer
) -> TextTable:
    """The table of a split, from the cache beside the shards or made now.

    A folder that cannot be written to only means that the next run makes it again.
    """
    rule = [VERSION, shards.fingerprint, list(sections), data.require, text.strip_deidentified]
    rule += [text.max_tokens, tokenizer.fingerprint, *(["marks"] if text.section_marks else [])]
    name = hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:16]
    path = shards.folder / CACHE / f"{shards.split}-{name}.h5"

    def tokens() -> dict[str, NDArray[Any]]:
        texts = texts_of(shards, sections, data, text)
        return vars(_build(texts, len(shards), text.max_tokens, tokenizer))

    return TextTable(**cached(path, json.dumps(rule), tokens))


def _build(texts: Iterator[str], n: int, max_tokens: int, tokenizer: TextTokenizer) -> TextTable:
    start = np.zeros(n + 1, np.int64)
    digests = np.zeros(n, np.int64)
    pieces = [np.empty(0, np.int32)]
    row = 0
    while chunk := list(islice(texts, CHUNK)):
        for words, ids in zip(chunk, tokenizer.encode_many(chunk, max_tokens), strict=True):
            digests[row] = digest(words)
            start[row + 1] = start[row] + (len(ids) if words else 0)
            if words:
                pieces.append(np.array(ids, np.int32))
            row += 1
        pieces = [np.concatenate(pieces)] if len(pieces) > 64 * CHUNK else pieces
    return TextTable(np.concatenate(pieces), start, digests)
