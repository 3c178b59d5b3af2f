"""The 1 %, 10 % and other shares of a train split: which samples, and by what rule.

n samples of the split; rows are places in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.labels.labelled import is_known
from medunifier_cli.data.shard_scan import digest64
from medunifier_cli.data.shards import Shards, read_manifest
from medunifier_cli.errors import DataError


@dataclass(frozen=True)
class Chosen:
    """Rows of a split, and how they were chosen."""

    rows: NDArray[np.int64]
    rule: str
    seed: int | None = None
    """Of our own draw; None where nothing was drawn here."""


def choose(shards: Shards, target: NDArray[Any], fraction: float, seed: int) -> Chosen:
    """The samples with a label that make `fraction` of a split.

    Args:
        target: of every sample, see `labelled.targets_of`.
        fraction: in (0, 1].
        seed: of a draw, where the manifest lists no ids for this fraction.

    Raises:
        DataError: no sample of the split has a label.
    """
    labelled = np.flatnonzero(is_known(target))
    if not len(labelled):
        raise DataError(
            f"{shards.folder}: no sample of split {shards.split!r} has a label to learn; "
            "is data.dataset the one these shards were made from?"
        )
    if fraction == 1:
        return Chosen(labelled, "all labelled samples")
    name = f"{shards.split}-{fraction:g}"
    listed = ((read_manifest(shards.folder) or {}).get("subsets") or {}).get(name)
    if listed is not None:
        keys = np.array([key.encode() for key in listed["keys"]], dtype="S")
        among = np.isin(shards.index["key"], keys)
        return Chosen(labelled[among[labelled]], f"{name} of the manifest: {listed['rule']}", listed["seed"])
    rows = labelled[draw(target[labelled], shards.keys(labelled), fraction, seed)]
    return Chosen(rows, f"{fraction:g} of the labelled samples, stratified by label, rounded up; ours", seed)


def draw(target: NDArray[Any], keys: list[str], fraction: float, seed: int) -> NDArray[np.int64]:
    """A stratified draw: places of ceil(fraction * n) samples, sorted.

    Samples with equal labels form a stratum, ordered by a hash of (seed, key), and stand at the middle of
    their n-th parts in [0, 1]; the draw takes the lowest places of all strata. Each stratum keeps its share
    to within one sample, and a smaller draw is part of a larger one with the same seed.
    """
    n = len(keys)
    rows = np.nan_to_num(target, nan=-1.0).reshape(n, -1)
    _, stratum = np.unique(rows, axis=0, return_inverse=True)
    stratum = stratum.reshape(-1)
    chance = np.array([digest64(f"{seed}:{key}") for key in keys], dtype=np.uint64)
    order = np.lexsort((chance, stratum))
    size = np.bincount(stratum)
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(np.cumsum(size) - size, size)
    place = (rank + 0.5) / size[stratum]
    count = math.ceil(round(fraction * n, 6))
    drawn: NDArray[np.int64] = np.sort(np.lexsort((chance, place))[:count])
    return drawn
