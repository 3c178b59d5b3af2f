"""Seeded random samples and id lists from the user: every random choice that a data set makes.

NumPy's `RandomState` is used instead of the newer `Generator` because its streams are frozen for good: a seed
gives the same patients in every later version, and the splits of the literature were made with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import (
    DataError,
    Option,
    Subset,
    decode_text,
    quoted,
    read_bytes,
    read_json,
    unpack,
)

from .tables import Table, column_names

__all__ = [
    "PART_OPTIONS", "hash_share", "listed_ids", "random_state", "shares", "shuffled", "stratified",
    "train_parts",
]  # fmt: skip

PARTS = {0.01: "ids_1_percent", 0.1: "ids_10_percent"}
"""Fractions of the train split that the paper fine-tunes on, each with the option that gives it as a list."""

PART_OPTIONS = {
    option: Option("", f"file that lists the {fraction:.0%} subset of train; empty: sample it")
    for fraction, option in PARTS.items()
}

ID_COLUMNS = ("key", "patientId", "ImageId", "dicom_id", "Filename", "filename", "Path", "path", "image_path")
"""Columns that hold the ids where a list is a CSV; the first one present is used."""

T = TypeVar("T")


def shuffled(items: Sequence[T], seed: int, *stream: int) -> list[T]:
    """All items in random order; different `stream` numbers give independent orders for one seed."""
    state = random_state(seed, *stream)
    return [items[i] for i in state.permutation(len(items))]


def random_state(seed: int, *stream: int) -> np.random.RandomState:
    """The generator of a seed, and of one of its streams.

    Raises:
        DataError: the seed is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise DataError(f"-o seed={seed}: a seed is a number from 0 to {2**32 - 1}")
    return np.random.RandomState([seed, *stream] if stream else seed)


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """Distribute `total` over groups in proportion to their sizes, by the largest-remainder method.

    Every non-empty group gets at least one, unless there are more groups than `total`.

    Raises:
        ValueError: `total` exceeds the sum of the sizes.
    """
    if total > sum(sizes):
        raise ValueError(f"cannot sample {total} of {sum(sizes)} items")
    minimum = 1 if total >= sum(1 for size in sizes if size) else 0
    exact = [total * size / max(1, sum(sizes)) for size in sizes]
    parts = [max(math.floor(part), minimum if size else 0) for part, size in zip(exact, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda group: parts[group] - exact[group])
    while sum(parts) < total:
        for group in by_remainder:
            if parts[group] < sizes[group] and sum(parts) < total:
                parts[group] += 1
    while sum(parts) > total:  # groups raised to one item have used up what belongs to the larger ones
        larger = [group for group in range(len(sizes)) if parts[group] > 1]
        parts[max(larger, key=lambda group: parts[group] - exact[group])] -= 1
    return parts


def stratified(strata: Sequence[Hashable], total: int, seed: int) -> NDArray[np.int64]:
    """Indices of a sample of `total` items in which each stratum keeps its share, sorted.

    A smaller sample with the same seed is contained in a larger one, up to the rounding of the strata.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        groups.setdefault(stratum, []).append(index)
    names = sorted(groups, key=str)
    parts = shares([len(groups[name]) for name in names], total)
    sample: list[int] = []
    # One stream per stratum: taking the first k of the same shuffled list is what nests the samples.
    for stream, (name, part) in enumerate(zip(names, parts, strict=True)):
        sample += shuffled(groups[name], seed, stream)[:part]
    return np.sort(np.array(sample, dtype=np.int64))


def train_parts(
    strata: Mapping[str, Hashable],
    options: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
) -> dict[str, Subset]:
    """`train-0.01` and `train-0.1`: subsets of the train split, sampled (stratified) or listed by the user.

    The smaller sample is part of the larger one. A subset too small for one sample of each class is omitted.

    Args:
        strata: key -> class of each train sample, in a fixed order.
        options: values of `PART_OPTIONS` and `seed`.
        names: other names of the keys that a list may use, such as file names.

    Raises:
        DataError: a listed id is not in the train split.
    """
    keys, seed, subsets = list(strata), options["seed"], {}
    for fraction, option in PARTS.items():
        part = f"train-{fraction:g}"
        # round() first: a product such as 0.07 * 100 = 7.000000000000001 must not become 8.
        total = math.ceil(round(fraction * len(keys), 6))
        if options[option]:
            list_file = Path(options[option])
            key_by_name = {**(names or {}), **{key: key for key in keys}}
            ids = listed_ids(list_file, part)
            unknown = [name for name in ids if key_by_name.get(name) not in strata]
            if unknown:
                count = f"{len(unknown)} of {len(ids)}"
                raise DataError(
                    f"{list_file}: {count} ids are not in the train split, first {quoted(unknown[0])}"
                )
            subsets[part] = Subset([key_by_name[name] for name in ids], f"given as {list_file.name}")
        elif total >= len(set(strata.values())):
            sample = stratified(list(strata.values()), total, seed)
            rule = f"{fraction:.0%} of the train split, stratified by class, rounded up"
            subsets[part] = Subset([keys[i] for i in sample], rule, seed)
    return subsets


def hash_share(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the name and the seed: for splits by hash."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def listed_ids(path: Path, subset: str, normalise: Callable[[str], str] = str) -> list[str]:
    """Ids of a list given by the user, in order, without repetitions, each passed through `normalise`.

    The file is a CSV with one of `ID_COLUMNS`, the manifest.json of other shards (its `subset` is read), a
    JSON list, or plain text with one id per line.

    Raises:
        DataError: no such file, no id in it, or none of the columns.
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
                f"{path}: none of the columns {', '.join(ID_COLUMNS)}; it has {column_names(header)}"
            )
        ids = [row[0] for _, row in table.rows([column])]
    else:
        content = read_bytes(path, DataError, "write one id per line", unpack.LIST_BYTES)
        ids = decode_text(content, str(path)).split("\n")
    unique = dict.fromkeys(normalise(text.strip()) for text in ids if text.strip())
    if not unique:
        raise DataError(f"{path} lists no ids")
    return list(unique)


class _Subset(TypedDict, total=False):
    keys: list[str]


class _Manifest(TypedDict):
    subsets: dict[str, _Subset]


def _json_list(path: Path, subset: str) -> list[str]:
    advice = "a list of ids is expected, or a manifest with subsets"
    found = read_json(path, list[str] | _Manifest, DataError, advice)  # type: ignore[arg-type]
    if isinstance(found, list):
        return found
    if subset not in found["subsets"]:
        raise DataError(f"{path} has no subset {subset}; it has: {', '.join(found['subsets']) or 'none'}")
    return found["subsets"][subset].get("keys", [])
