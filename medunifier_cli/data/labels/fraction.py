"""Select 1 %, 10 % or another fraction of a training split, stratified by label.

n samples of the split; rows are their indices in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.disk.index import digest64
from medunifier_cli.data.disk.manifest import read_manifest
from medunifier_cli.data.labels.labelled import is_known
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError


@dataclass(frozen=True)
class Selection:
    """Rows of a split, and the rule by which they were selected."""

    rows: NDArray[np.int64]
    rule: str
    seed: int | None = None
    """Seed of the random selection; None if nothing was random."""


def select(shards: Shards, target: NDArray[Any], fraction: float, seed: int) -> Selection:
    """Select a fraction of the labelled samples of a split.

    Args:
        target: targets of all samples, see `labelled.targets_of`.
        fraction: in (0, 1].
        seed: of the random selection, used if the manifest lists no subset for this fraction.

    Raises:
        DataError: no sample of the split has a label.
    """
    labelled = np.flatnonzero(is_known(target))
    if not len(labelled):
        raise DataError(
            f"{shards.folder}: no sample of split {shards.split!r} has a label to learn; "
            "is data.dataset the data set these shards were made from?"
        )
    if fraction == 1:
        return Selection(labelled, "all labelled samples")
    name = f"{shards.split}-{fraction:g}"
    manifest = read_manifest(shards.folder)
    listed = manifest.get("subsets", {}).get(name) if manifest else None
    if listed is not None:
        # A published subset takes precedence, so that results compare with the literature.
        keys = np.array([key.encode() for key in listed["keys"]], dtype="S")
        is_listed = np.isin(shards.index["key"], keys)
        rule = f"{name} of the manifest: {listed['rule']}"
        return Selection(labelled[is_listed[labelled]], rule, listed["seed"])
    rows = labelled[stratified_rows(target[labelled], shards.keys(labelled), fraction, seed)]
    return Selection(
        rows, f"{fraction:g} of the labelled samples, stratified by label, rounded up; ours", seed
    )


def stratified_rows(target: NDArray[Any], keys: list[str], fraction: float, seed: int) -> NDArray[np.int64]:
    """Indices of ceil(fraction * n) samples, stratified by label and sorted.

    Samples with equal labels form a stratum and are ordered in it by a hash of (seed, key). Sample r of a
    stratum of m has the quantile (r + 1/2) / m, and the samples with the lowest quantiles of all strata are
    taken. Each stratum keeps its share to within one sample, and a smaller fraction is a subset of a larger
    one with the same seed.
    """
    n = len(keys)
    rows = np.nan_to_num(target, nan=-1.0).reshape(n, -1)
    _, stratum = np.unique(rows, axis=0, return_inverse=True)
    stratum = stratum.reshape(-1)
    # A hash of the key and not a random generator: the selection then does not depend on the order of the
    # samples, nor on samples of other strata.
    shuffle = np.array([digest64(f"{seed}:{key}") for key in keys], dtype=np.uint64)
    order = np.lexsort((shuffle, stratum))
    size = np.bincount(stratum)
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(np.cumsum(size) - size, size)
    quantile = (rank + 0.5) / size[stratum]
    count = math.ceil(round(fraction * n, 6))  # rounded first: 0.07 * 100 is 7.000000000000001
    chosen: NDArray[np.int64] = np.sort(np.lexsort((shuffle, quantile))[:count])
    return chosen
