"""The parts of `manifest.json`: what a folder of shards holds, its origin, and what was left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import Plan, Record

TOLERANCE = 0.02
"""Relative deviation from the expected count that triggers no warning."""
VALUES = {1.0: "positive", 0.0: "negative", -1.0: "uncertain"}
UNKNOWN = "unknown"
"""View of an image whose view is not known."""


def made_with() -> dict[str, str]:
    """Versions of the packages that the bytes of a shard depend on."""
    return {name: version(name) for name in ("medunifier", "pillow", "pydicom")}


def tally(records: Iterable[Record], text_sections: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts over the samples of one shard: `views`, `text_kinds`, `sections` that are not empty, `text`.

    Where there are synthetic images, also their `origins`.
    """
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("views", "text_kinds", "sections", "text")
    }
    for record in records:
        sections = [name for name, text in record.sections.items() if text.strip()]
        counts["views"][record.view or UNKNOWN] += 1
        counts["text_kinds"][record.text_kind] += 1
        counts["sections"].update(sections)
        counts["text"]["there" if set(sections) & set(text_sections) else "none"] += 1
        if record.origin:
            counts.setdefault("origins", Counter())[record.origin] += 1
    return {name: dict(sorted(count.items())) for name, count in counts.items()}


def add_up(tallies: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of the tallies of several shards."""
    total: dict[str, Counter[str]] = {}
    for counts_by_name in tallies:
        for name, counts in counts_by_name.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(sorted(counts.items())) for name, counts in total.items()}


def label_counts(index: NDArray[Any], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each label is positive, negative, uncertain and blank in an index (`index.index_dtype`)."""
    table = {}
    for i, name in enumerate(names):
        values, counts = np.unique(index["labels"][:, i], return_counts=True, equal_nan=True)
        named: Counter[str] = Counter()
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            named["blank" if math.isnan(value) else VALUES.get(value, f"{value:g}")] += count
        table[name] = dict(sorted(named.items()))
    return table


def class_counts(numbers: NDArray[np.int64], classes: Sequence[str]) -> dict[str, int]:
    """Number of samples of each class; -1, for none or several positive classes, is not counted."""
    counts = np.bincount(numbers[numbers >= 0], minlength=len(classes))
    return dict(zip(classes, counts.tolist(), strict=True))


def count_warnings(expected: Mapping[str, int], written: Mapping[str, int]) -> list[str]:
    """One line for each count that deviates from that of the full download by more than 2 %.

    Args:
        expected: by split or under `all`.
        written: number of samples written, by split.
    """
    lines = []
    for name, number in expected.items():
        count = sum(written.values()) if name == "all" else written.get(name, 0)
        where = "" if name == "all" else f" in {name}"
        if count < number * (1 - TOLERANCE):
            lines.append(f"found {count:,} of about {number:,} images{where}: is the download complete?")
        elif count > number * (1 + TOLERANCE):
            lines.append(f"found {count:,} images{where}, about {number:,} expected: is it another release?")
    return lines


def rescaled_warnings(number: int) -> list[str]:
    """One line if the grey levels of any image could not be meant."""
    if not number:
        return []
    return [
        f"the grey levels of {number:,} of the images cannot be meant (nearly all black or white, a handful "
        "of levels, or a wrong look-up table); they were rescaled, and rescaled.jsonl lists them"
    ]


def subset_entries(plan: Plan, keys: NDArray[Any]) -> dict[str, Any]:
    """The subsets with rule, seed and keys; `not_written` lists keys whose image was rejected.

    Args:
        keys: all keys written, as bytes.
    """
    entries: dict[str, Any] = {}
    for name, subset in plan.subsets.items():
        listed = np.array([key.encode() for key in subset.keys], dtype="S")
        # An empty array has no string type, which `isin` refuses to compare.
        lost = listed[~np.isin(listed, keys)] if len(listed) else listed
        entries[name] = {
            "rule": subset.rule,
            "seed": subset.seed,
            "n": len(listed),
            "keys": [key.decode() for key in listed.tolist()],
        }
        if len(lost):
            entries[name]["not_written"] = [key.decode() for key in lost.tolist()]
    return entries
