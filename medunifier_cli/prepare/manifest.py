"""`manifest.json`: what a folder of shards holds, where it came from and what was left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import Plan, Record

VERSION = 1
"""Of the manifest's format."""
TOLERANCE = 0.02
"""Share of the expected count that may be missing, or too many, without a word."""
VALUES = {1.0: "positive", 0.0: "negative", -1.0: "uncertain"}
UNKNOWN = "unknown"
"""View of an image that has none."""


def made_with() -> dict[str, str]:
    """Versions of what decides a shard's bytes."""
    return {name: version(name) for name in ("medunifier", "pillow", "pydicom")}


def tally(records: Iterable[Record], text_sections: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts over the samples of one shard: `views`, `text_kinds`, `sections` that are not empty, `text`."""
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("views", "text_kinds", "sections", "text")
    }
    for record in records:
        full = [name for name, text in record.sections.items() if text.strip()]
        counts["views"][record.view or UNKNOWN] += 1
        counts["text_kinds"][record.text_kind] += 1
        counts["sections"].update(full)
        counts["text"]["there" if set(full) & set(text_sections) else "none"] += 1
    return {name: dict(sorted(count.items())) for name, count in counts.items()}


def add_up(tallies: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The tallies of several shards as one."""
    total: dict[str, Counter[str]] = {}
    for one in tallies:
        for name, counts in one.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(sorted(counts.items())) for name, counts in total.items()}


def label_counts(index: NDArray[Any], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each label is positive, negative, uncertain and blank in an index (`shards.index_dtype`)."""
    table = {}
    for i, name in enumerate(names):
        values, counts = np.unique(index["labels"][:, i], return_counts=True, equal_nan=True)
        named: Counter[str] = Counter()
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            named["blank" if math.isnan(value) else VALUES.get(value, f"{value:g}")] += count
        table[name] = dict(sorted(named.items()))
    return table


def class_counts(numbers: NDArray[np.int64], classes: Sequence[str]) -> dict[str, int]:
    """Samples of exactly one positive class, by class; -1 is none of them."""
    found = np.bincount(numbers[numbers >= 0], minlength=len(classes))
    return dict(zip(classes, found.tolist(), strict=True))


def shortfalls(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """One line for each count that is far from that of the full download.

    Args:
        expected: by split or `all`.
        found: samples written, by split.
    """
    lines = []
    for name, number in expected.items():
        there = sum(found.values()) if name == "all" else found.get(name, 0)
        where = "" if name == "all" else f" in {name}"
        if there < number * (1 - TOLERANCE):
            lines.append(f"found {there:,} of about {number:,} images{where}: is the download complete?")
        elif there > number * (1 + TOLERANCE):
            lines.append(f"found {there:,} images{where}, about {number:,} expected: is it another release?")
    return lines


def subset_entries(plan: Plan, keys: NDArray[Any]) -> dict[str, Any]:
    """The drawn subsets with rule, seed and ids; `not_written` lists ids whose image was rejected.

    Args:
        keys: all keys written, as bytes.
    """
    entries: dict[str, Any] = {}
    for name, subset in plan.subsets.items():
        drawn = np.array([key.encode() for key in subset.keys], dtype="S")
        lost = drawn[~np.isin(drawn, keys)] if len(drawn) else drawn
        entries[name] = {
            "rule": subset.rule,
            "seed": subset.seed,
            "n": len(drawn),
            "keys": [key.decode() for key in drawn.tolist()],
        }
        if len(lost):
            entries[name]["not_written"] = [key.decode() for key in lost.tolist()]
    return entries
