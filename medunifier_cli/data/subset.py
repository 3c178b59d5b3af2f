"""A part of a folder of shards under one name: a split, a drawn subset of the manifest, or a list of keys.

A subset (`zeroshot`, `train-0.01`) may take samples from several splits; it opens as one `Shards`, in the
order of its keys, so that everything downstream treats it as a split.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medunifier_cli.data.shards import Shards, index_dtype, read_manifest, split_names
from medunifier_cli.errors import DataError

KEY_COLUMN = "key"


def parts_of(folder: Path) -> tuple[list[str], list[str]]:
    """(splits, drawn subsets) that `open_part` knows in a folder of shards."""
    manifest = read_manifest(folder) or {}
    splits = sorted(manifest["splits"]) if "splits" in manifest else split_names(folder)
    return splits, [name for name in manifest.get("subsets") or {} if name not in splits]


def open_part(folder: Path, name: str) -> Shards:
    """Open a split or, where there is none of that name, a drawn subset of the manifest.

    Subset ids whose image was rejected when the shards were written (`not_written`) are left out.

    Raises:
        DataError: no such folder, split or subset, or shards that are not those of the manifest.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of shards; run `mu prepare` first")
    splits, subsets = parts_of(folder)
    if name in splits or not subsets:
        return Shards.open(folder, name)
    if name not in subsets:
        raise DataError(
            f"{folder}: no split or subset {name!r}; the splits there are {', '.join(splits)}, the subsets "
            f"{', '.join(subsets)}"
        )
    entry = (read_manifest(folder) or {})["subsets"][name]
    lost = set(entry.get("not_written", ()))
    return open_keys(folder, name, [key for key in entry["keys"] if key not in lost])


def open_keys(folder: Path, name: str, keys: Sequence[str]) -> Shards:
    """Samples with these keys, in their order, from whichever splits hold them.

    Args:
        name: what the part is called in results.

    Raises:
        DataError: no key, one that is given twice, or one that is in no split.
    """
    if not keys:
        raise DataError(f"{folder}: subset {name!r} has no samples")
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise DataError(f"{name}: key {twice!r} is listed twice")
    place = {key.encode(): i for i, key in enumerate(keys)}
    opened = [Shards.open(folder, split) for split in parts_of(folder)[0]]
    labels = list(dict.fromkeys(label for shards in opened for label in shards.label_names))
    index = np.zeros(len(keys), index_dtype(max(map(len, place)), len(labels)))
    index["labels"] = np.nan
    names: list[str] = []
    found = np.zeros(len(keys), bool)
    for shards in opened:
        rows = np.flatnonzero(np.isin(shards.index["key"], np.array(list(place), dtype="S")))
        here = np.array([place[key] for key in shards.index["key"][rows].tolist()], np.int64)
        for field in index.dtype.names or ():
            if field not in ("labels", "shard"):
                index[field][here] = shards.index[field][rows]
        columns = [labels.index(label) for label in shards.label_names]
        index["labels"][here[:, None], columns] = shards.index["labels"][rows]
        index["shard"][here] = shards.index["shard"][rows] + len(names)
        names += shards.names
        found[here] = True
    if not found.all():
        raise DataError(
            f"{folder}: {int((~found).sum()):,} of {len(keys):,} keys of {name!r} are in no split, the first "
            f"is {keys[int(np.argmin(found))]!r}"
        )
    contents = "".join(shards.fingerprint for shards in opened) + "\n".join(keys)
    fingerprint = hashlib.sha256(contents.encode()).hexdigest()
    return Shards(folder, name, names, index, labels, fingerprint, opened[0].classes)


def read_keys(path: Path) -> list[str]:
    """Keys listed in a file: one a line, a CSV with a column `key`, or a JSON list.

    Raises:
        DataError: it cannot be read, or lists nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list of keys; write one key a line") from error
    if path.suffix == ".json":
        try:
            keys = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON") from error
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise DataError(f"{path}: not a JSON list of keys")
    elif path.suffix == ".csv":
        rows = csv.DictReader(text.splitlines())
        if KEY_COLUMN not in (rows.fieldnames or ()):
            raise DataError(f"{path}: no column {KEY_COLUMN!r}; it has {', '.join(rows.fieldnames or ())}")
        keys = [row[KEY_COLUMN] or "" for row in rows]
    else:
        keys = text.splitlines()
    keys = [key.strip() for key in keys if key.strip()]
    if not keys:
        raise DataError(f"{path}: lists no key")
    return keys
