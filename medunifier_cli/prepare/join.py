"""From finished shards to a folder that can be used: index, rejects, contact sheets, and last the manifest.

Receipts are read one at a time, twice: a data set of any size takes the memory of one shard.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DatasetPlugin, Plan
from medunifier_cli.data.shards import MANIFEST, Shards, fill_index, index_dtype
from medunifier_cli.errors import DataError
from medunifier_cli.files import TEMPORARY, atomic_write, write_json
from medunifier_cli.prepare.contact_sheet import write_sheet
from medunifier_cli.prepare.manifest import (
    VERSION,
    add_up,
    class_counts,
    label_counts,
    made_with,
    shortfalls,
    subset_entries,
)
from medunifier_cli.prepare.walk import Walk
from medunifier_cli.prepare.write import RECEIPTS, Receipt, load_receipt

REJECTS = "rejects.jsonl"
INDEX = ".index.npy"
DROPS = "drops.jsonl"
"""In the folder of receipts: the rows the plugin left out, as the walk met them."""


@dataclass(frozen=True)
class Expected:
    """A shard that the plan asks for."""

    name: str
    split: str
    fingerprint: str


@dataclass(frozen=True)
class Summary:
    """A receipt without its rows."""

    receipt: Receipt
    samples: int
    key_bytes: int
    labels: tuple[str, ...]


def summaries(folder: Path, expected: Sequence[Expected]) -> list[Summary | None]:
    """What is known of each expected shard; None for one that is not finished."""
    found: list[Summary | None] = []
    for shard in expected:
        receipt = load_receipt(folder, shard.name, shard.fingerprint)
        if receipt is None:
            found.append(None)
            continue
        labels = dict.fromkeys(name for row in receipt.rows for name in row.labels)
        key_bytes = max((len(row.key) for row in receipt.rows), default=0)
        found.append(Summary(replace(receipt, rows=[]), len(receipt.rows), key_bytes, tuple(labels)))
    return found


def join(
    folder: Path,
    shards: Sequence[Summary],
    walk: Walk,
    plan: Plan,
    plugin: DatasetPlugin,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write everything but the shards; the manifest comes last and says that the folder is whole.

    Returns:
        The manifest.

    Raises:
        DataError: no sample at all, or the disk is full.
    """
    _clear_away(folder, {shard.receipt.name for shard in shards})
    rejects = _write_rejects(folder, [shard.receipt for shard in shards])
    reasons = walk.drops + Counter(reject.reason for shard in shards for reject in shard.receipt.rejects)
    if not any(shard.samples for shard in shards):
        said = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        raise DataError(f"no image could be used ({said or 'no rows'}); see {folder / REJECTS}")
    classes = plan.classes or plugin.classes
    splits, index, keys = {}, {}, []
    for split in sorted({shard.receipt.split for shard in shards if shard.samples}):
        own = [shard for shard in shards if shard.receipt.split == split]
        opened, index[split] = _write_index(folder, split, own, classes)
        keys.append(np.array(opened.index["key"]))
        splits[split] = _split_entry(opened, own, plugin, classes)
        write_sheet(opened, plugin.text_sections, folder / f"sheet-{split}.png")
        opened.close()
    _clear_splits(folder, set(splits))
    written = {split: entry["samples"] for split, entry in splits.items()}
    manifest = {
        "version": VERSION,
        **settings,
        "title": plugin.title,
        "made_with": made_with(),
        "split_source": plan.split_source,
        "seed": plan.seed,
        "samples": sum(written.values()),
        "classes": list(classes),
        "headline_metric": plugin.headline_metric,
        "text_sections": list(plugin.text_sections),
        "splits": splits,
        "shared_subjects": walk.shared,
        "drops": dict(sorted(reasons.items())),
        "rejects": rejects,
        "expected": dict(plan.expected),
        "warnings": [*plan.warnings, *shortfalls(plan.expected, written)],
        "subsets": subset_entries(plan, np.concatenate(keys)),
        "index": index,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _split_entry(
    opened: Shards, shards: Sequence[Summary], plugin: DatasetPlugin, classes: Sequence[str]
) -> dict[str, Any]:
    counts = add_up(shard.receipt.counts for shard in shards)
    return {
        "samples": len(opened),
        "subjects": len(np.unique(opened.index["subject"])),
        "with_text": counts["text"].get("there", 0),
        "rejected": sum(len(shard.receipt.rejects) for shard in shards),
        "classes": class_counts(opened.class_indices(plugin), classes),
        "labels": label_counts(opened.index, opened.label_names),
        "sections": counts["sections"],
        "text_kinds": counts["text_kinds"],
        "views": counts["views"],
        "shards": [
            {
                "name": shard.receipt.file,
                "samples": shard.samples,
                "bytes": shard.receipt.bytes,
                "sha256": shard.receipt.sha256,
            }
            for shard in shards
            if shard.samples
        ],
    }


def _write_index(
    folder: Path, split: str, shards: Sequence[Summary], classes: Sequence[str]
) -> tuple[Shards, dict[str, Any]]:
    """`<split>.index.npy`, written shard by shard, and its entry in the manifest."""
    full = [shard for shard in shards if shard.samples]
    labels = list(dict.fromkeys(name for shard in full for name in shard.labels))
    dtype = index_dtype(max(shard.key_bytes for shard in full), len(labels))
    path = folder / f"{split}{INDEX}"
    hasher = hashlib.sha256()
    with atomic_write(path) as file:
        for block in _npy_blocks(folder, full, dtype, labels):
            hasher.update(block)
            file.write(block)
    index = np.load(path, mmap_mode="r", allow_pickle=False)
    opened = Shards(folder, split, [shard.receipt.file for shard in full], index, labels, "", classes)
    return opened, {"file": path.name, "sha256": hasher.hexdigest(), "labels": labels}


def _npy_blocks(
    folder: Path, shards: Sequence[Summary], dtype: np.dtype[Any], labels: Sequence[str]
) -> Iterator[bytes]:
    whole: NDArray[Any] = np.zeros(0, dtype)
    header = np.lib.format.header_data_from_array_1_0(whole)
    header["shape"] = (sum(shard.samples for shard in shards),)
    yield _npy_header(header)
    for number, shard in enumerate(shards):
        receipt = load_receipt(folder, shard.receipt.name, shard.receipt.fingerprint)
        if receipt is None:
            raise DataError(f"{folder / shard.receipt.file}: changed while the index was written; run again")
        rows = np.zeros(shard.samples, dtype)
        fill_index(rows, receipt.rows, number, labels)
        yield rows.tobytes()


def _npy_header(header: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _write_rejects(folder: Path, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """`rejects.jsonl`: rows left out by the plugin, then images that could not be used; no report text."""
    path = folder / REJECTS
    lines, hasher = 0, hashlib.sha256()
    with atomic_write(path) as file, open(folder / RECEIPTS / DROPS, "rb") as drops:
        for line in drops:
            hasher.update(line)
            file.write(line)
            lines += 1
        for receipt in receipts:
            for reject in receipt.rejects:
                said = {"source": reject.source, "reason": reject.reason, "key": reject.key}
                said |= {"split": receipt.split} | ({"detail": reject.detail} if reject.detail else {})
                line = json.dumps(said, ensure_ascii=False).encode() + b"\n"
                hasher.update(line)
                file.write(line)
                lines += 1
    return {"file": path.name, "lines": lines, "sha256": hasher.hexdigest()}


def _clear_splits(folder: Path, splits: set[str]) -> None:
    """Index and sheet of splits that are not there any more."""
    for path in folder.glob(f"*{INDEX}"):
        split = path.name.removesuffix(INDEX)
        if split not in splits:
            path.unlink()
            (folder / f"sheet-{split}.png").unlink(missing_ok=True)


def _clear_away(folder: Path, names: set[str]) -> None:
    """Shards of ours that this plan does not ask for any more, and what a killed run left half-written."""
    for path in (folder / RECEIPTS).glob("*.json"):
        if path.name != "settings.json" and path.stem not in names:
            (folder / f"{path.stem}.tar").unlink(missing_ok=True)
            path.unlink()
    # Not in the folder of receipts as well: another part may still be reading the plan to its end there.
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink()
