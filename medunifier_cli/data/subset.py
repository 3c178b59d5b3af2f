"""Open part of a folder of shards: a split, a subset listed in the manifest, or a list of keys.

A subset (`zeroshot`, `train-0.01`) may contain samples of several splits. It is opened as one `Shards`, in
the order of its keys, so that everything downstream can treat it like a split.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medunifier_cli.data.disk.index import index_dtype
from medunifier_cli.data.disk.manifest import MANIFEST, read_manifest
from medunifier_cli.data.disk.unpack import LIST_BYTES
from medunifier_cli.data.shard_scan import no_folder
from medunifier_cli.data.shards import Shards, split_names
from medunifier_cli.errors import DataError
from medunifier_cli.files import decode_text
from medunifier_cli.parsing import parse_json, read_bytes

KEY_COLUMN = "key"


def parts_of(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the splits and of the subsets in a folder of shards."""
    manifest = read_manifest(folder)
    if manifest is None:
        return split_names(folder), []
    splits = sorted(manifest["splits"]) if "splits" in manifest else split_names(folder)
    return splits, [name for name in manifest.get("subsets", {}) if name not in splits]


def open_part(folder: Path, name: str) -> Shards:
    """Open a split or, if there is none of that name, a subset listed in the manifest.

    Keys of a subset whose image was rejected when the shards were written (`not_written`) are left out.

    Raises:
        DataError: no such folder, split or subset, or shards that do not match the manifest.
    """
    if not folder.is_dir():
        raise DataError(no_folder(folder))
    splits, subsets = parts_of(folder)
    if name in splits or not subsets:
        return Shards.open(folder, name)
    if name not in subsets:
        raise DataError(
            f"{folder}: no split or subset {name!r}; available splits: {', '.join(splits)}; "
            f"subsets: {', '.join(subsets)}"
        )
    manifest = read_manifest(folder)
    if manifest is None or name not in manifest.get("subsets", {}):  # another since it was listed
        raise DataError(f"{folder}: {MANIFEST} has just changed; run the same command again")
    entry = manifest["subsets"][name]
    rejected = set(entry.get("not_written", ()))
    return open_keys(folder, name, [key for key in entry["keys"] if key not in rejected])


def synthetic_in(folder: Path, name: str) -> dict[str, int]:
    """Origin -> number of synthetic images in a split; for a subset, in all splits it may be taken from."""
    splits = (read_manifest(folder) or {}).get("splits", {})
    entries = [splits[name]] if name in splits else list(splits.values())
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.get("synthetic", {}))
    return dict(sorted(counts.items()))


def refuse_synthetic(folder: Path, name: str, key: str) -> None:
    """Refuse a part for any use but training if it holds synthetic images.

    Args:
        key: of the recipe, or option, that names the part.

    Raises:
        DataError: it does.
    """
    counts = synthetic_in(folder, name)
    if counts:
        raise DataError(
            f"{folder}: {name!r} holds {sum(counts.values()):,} synthetic images ({next(iter(counts))}), "
            f"which are for training alone; name another split as {key}"
        )


def open_keys(folder: Path, name: str, keys: Sequence[str]) -> Shards:
    """The samples with these keys, in this order, from all splits of the folder.

    Args:
        name: name of the part in results.

    Raises:
        DataError: no keys, a repeated key, or a key that is in no split.
    """
    if not keys:
        raise DataError(f"{folder}: subset {name!r} has no samples")
    if len(set(keys)) < len(keys):
        counts = Counter(keys)
        twice = next(key for key in keys if counts[key] > 1)
        raise DataError(f"{name}: key {twice!r} is listed twice")
    position_of = {key.encode(): i for i, key in enumerate(keys)}
    opened = [Shards.open(folder, split) for split in parts_of(folder)[0]]
    labels = list(dict.fromkeys(label for shards in opened for label in shards.label_names))
    captions = any("text_size" in (shards.index.dtype.names or ()) for shards in opened)
    index = np.zeros(len(keys), index_dtype(max(map(len, position_of)), len(labels), captions))
    index["labels"] = np.nan
    names: list[str] = []
    filled = np.zeros(len(keys), bool)
    for shards in opened:
        rows = np.flatnonzero(np.isin(shards.index["key"], np.array(list(position_of), dtype="S")))
        positions = np.array([position_of[key] for key in shards.index["key"][rows].tolist()], np.int64)
        for field in shards.index.dtype.names or ():
            if field not in ("labels", "shard"):
                index[field][positions] = shards.index[field][rows]
        columns = [labels.index(label) for label in shards.label_names]
        index["labels"][positions[:, None], columns] = shards.index["labels"][rows]
        index["shard"][positions] = shards.index["shard"][rows] + len(names)
        names += shards.names
        filled[positions] = True
    if not filled.all():
        raise DataError(
            f"{folder}: {int((~filled).sum()):,} of {len(keys):,} keys of {name!r} are in no split, "
            f"the first is {keys[int(np.argmin(filled))]!r}"
        )
    contents = "".join(shards.fingerprint for shards in opened) + "\n".join(keys)
    fingerprint = hashlib.sha256(contents.encode()).hexdigest()
    return Shards(folder, name, names, index, labels, fingerprint, opened[0].classes)


def read_keys(path: Path) -> list[str]:
    """Keys listed in a file: one per line, a CSV with a column `key`, or a JSON list.

    Raises:
        DataError: the file cannot be read, or lists no key.
    """
    content = read_bytes(path, DataError, "write one key per line", LIST_BYTES)
    if path.suffix == ".json":
        keys = parse_json(content, list[str], str(path), DataError, "a JSON list of keys is expected")
    elif path.suffix == ".csv":
        keys = _csv_keys(path, decode_text(content, str(path)))
    else:
        keys = decode_text(content, str(path)).split("\n")
    keys = [key.strip() for key in keys if key.strip()]
    if not keys:
        raise DataError(f"{path}: lists no key")
    return keys


def _csv_keys(path: Path, text: str) -> list[str]:
    try:
        rows = csv.DictReader(io.StringIO(text))
        if KEY_COLUMN not in (rows.fieldnames or ()):
            raise DataError(
                f"{path}: no column {KEY_COLUMN!r}; it has {', '.join(rows.fieldnames or ()) or 'none'}"
            )
        return [row[KEY_COLUMN] or "" for row in rows]
    except csv.Error as error:  # a field of more than 128 KiB, or a stray carriage return
        raise DataError(f"{path}: no CSV table ({error})") from error
