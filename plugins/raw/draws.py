"""Seeded draws and id lists: everything about chance in the data sets, in one place.

NumPy's `RandomState` is used because its streams are frozen for good: the same seed gives the same patients
in every later version, and the splits of the literature were drawn with it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DataError, Option, Subset

from .tables import Table

__all__ = ["PART_OPTIONS", "hash_share", "listed_ids", "shares", "shuffled", "stratified", "train_parts"]

PARTS = {0.01: "ids_1_percent", 0.1: "ids_10_percent"}
"""Shares of the train split that the paper fine-tunes on, and the options that give them as a list."""

PART_OPTIONS = {
    option: Option("", f"a file that lists the {fraction:.0%} of train, instead of a draw")
    for fraction, option in PARTS.items()
}

ID_COLUMNS = ("key", "patientId", "ImageId", "dicom_id", "Filename", "filename", "Path", "path", "image_path")
"""Columns that hold the ids where a list is a CSV; the first one present counts."""

T = TypeVar("T")


def shuffled(items: Sequence[T], seed: int, *stream: int) -> list[T]:
    """All items in a random order; `stream` tells draws of one seed apart."""
    state = np.random.RandomState([seed, *stream] if stream else seed)
    return [items[place] for place in state.permutation(len(items))]


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """Splits `total` over groups in proportion to their sizes, by largest remainder.

    Every group gets one at least, unless there are more groups than `total`.

    Raises:
        ValueError: `total` is more than there is.
    """
    if total > sum(sizes):
        raise ValueError(f"{total} of {sum(sizes)} items cannot be drawn")
    least = 1 if total >= sum(1 for size in sizes if size) else 0
    exact = [total * size / max(1, sum(sizes)) for size in sizes]
    parts = [max(math.floor(part), least if size else 0) for part, size in zip(exact, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda group: parts[group] - exact[group])
    while sum(parts) < total:
        for group in by_remainder:
            if parts[group] < sizes[group] and sum(parts) < total:
                parts[group] += 1
    while sum(parts) > total:  # a group was lifted to one item at the cost of the others
        larger = [group for group in range(len(sizes)) if parts[group] > 1]
        parts[max(larger, key=lambda group: parts[group] - exact[group])] -= 1
    return parts


def stratified(strata: Sequence[Hashable], total: int, seed: int) -> NDArray[np.int64]:
    """Places of `total` items drawn so that each stratum keeps its share, sorted.

    A smaller draw with the same seed is part of a larger one, up to the rounding of the strata.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, stratum in enumerate(strata):
        groups.setdefault(stratum, []).append(place)
    names = sorted(groups, key=str)
    parts = shares([len(groups[name]) for name in names], total)
    drawn: list[int] = []
    for stream, (name, part) in enumerate(zip(names, parts, strict=True)):
        drawn += shuffled(groups[name], seed, stream)[:part]
    return np.sort(np.array(drawn, dtype=np.int64))


def train_parts(
    strata: Mapping[str, Hashable],
    options: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
) -> dict[str, Subset]:
    """`train-0.01` and `train-0.1`: parts of the train split, drawn (stratified) or given as a list.

    The small draw is in the large one. A share too small to hold one of each class is left out.

    Args:
        strata: key -> class of each train sample, in a fixed order.
        options: with `PART_OPTIONS` and `seed`.
        names: other names for keys that a list may use, such as file names.

    Raises:
        DataError: a list with an id that is not in the train split.
    """
    keys, seed, subsets = list(strata), options["seed"], {}
    for fraction, option in PARTS.items():
        part = f"train-{fraction:g}"
        total = math.ceil(round(fraction * len(keys), 6))
        if options[option]:
            listed = Path(options[option])
            known = {**(names or {}), **{key: key for key in keys}}
            ids = listed_ids(listed, part)
            lacking = [name for name in ids if known.get(name) not in strata]
            if lacking:
                count = f"{len(lacking)} of {len(ids)}"
                raise DataError(f"{listed}: {count} ids are not in the train split, first {lacking[0]!r}")
            subsets[part] = Subset([known[name] for name in ids], f"given as {listed.name}")
        elif total >= len(set(strata.values())):
            places = stratified(list(strata.values()), total, seed)
            rule = f"{fraction:.0%} of the train split, stratified by class, rounded up"
            subsets[part] = Subset([keys[place] for place in places], rule, seed)
    return subsets


def hash_share(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the name and the seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def listed_ids(path: Path, subset: str, normal: Callable[[str], str] = str) -> list[str]:
    """Ids of a list given by the user, in order, each once, put through `normal`.

    The file is a CSV with one of `ID_COLUMNS`, the manifest.json of other shards (its `subset` is taken), a
    JSON list, or plain text with an id on each line.

    Raises:
        DataError: no such file, or none of the columns.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a text file with one id per line, or a CSV")
    if path.suffix == ".json":
        ids = _json_list(path, subset)
    elif path.name.endswith((".csv", ".csv.gz")):
        table = Table(path)
        header = table.header()
        column = next((name for name in ID_COLUMNS if name in header), None)
        if column is None:
            raise DataError(
                f"{path}: none of the columns {', '.join(ID_COLUMNS)}; it has {', '.join(header)}"
            )
        ids = [row[0] for _, row in table.rows([column])]
    else:
        ids = path.read_text(encoding="utf-8-sig").split("\n")
    unique = dict.fromkeys(normal(text.strip()) for text in ids if text.strip())
    if not unique:
        raise DataError(f"{path} lists no ids")
    return list(unique)


def _json_list(path: Path, subset: str) -> list[str]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if isinstance(ids, dict) and isinstance(ids.get("subsets"), dict):
        if subset not in ids["subsets"]:
            there = ", ".join(ids["subsets"]) or "none"
            raise DataError(f"{path} has no subset {subset}; there are: {there}")
        ids = ids["subsets"][subset]["keys"]
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise DataError(f"{path} is neither a list of ids nor a manifest with subsets")
    return ids
