"""Complete a folder of finished shards: write its index, rejects, contact sheets and, last, its manifest.

The index rows are read from one receipt at a time, so a data set of any size takes the memory of one shard.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DatasetPlugin, Plan
from medunifier_cli.data.disk.index import fill_index, index_dtype
from medunifier_cli.data.disk.manifest import MANIFEST, VERSION
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from medunifier_cli.files import atomic_write, write_json
from medunifier_cli.prepare.contact_sheet import write_sheet
from medunifier_cli.prepare.dataset_scan import DatasetScan
from medunifier_cli.prepare.folder import (
    DROPS,
    INDEX,
    RECEIPTS,
    REJECTS,
    RESCALED,
    SETTINGS,
    index_path,
    shard_path,
    sheet_path,
)
from medunifier_cli.prepare.manifest import (
    add_up,
    class_counts,
    count_warnings,
    label_counts,
    made_with,
    rescaled_warnings,
    subset_entries,
)
from medunifier_cli.prepare.write import Receipt, load_rows
from medunifier_cli.temporary import sweep


def join(
    folder: Path,
    shards: Sequence[Receipt],
    scan: DatasetScan,
    plan: Plan,
    plugin: DatasetPlugin,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write everything except the shards. The manifest comes last: where it exists, the folder is complete.

    Args:
        shards: receipts of all shards of the plan, in its order.
        scan: finished; counts what the plugin left out.
        settings: what the shards depend on, copied into the manifest.

    Returns:
        The manifest.

    Raises:
        DataError: no sample at all, or the disk is full.
    """
    _delete_old_shards(folder, {shard.name for shard in shards})
    rejects, rescaled = _write_rejects(folder, shards), _write_rescaled(folder, shards)
    reasons = scan.drops + Counter(reject.reason for shard in shards for reject in shard.rejects)
    if not any(shard.samples for shard in shards):
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        raise DataError(f"no image could be used ({counts or 'no rows'}); see {folder / REJECTS}")
    classes = plan.classes or plugin.classes
    sections = plan.text_sections or plugin.text_sections
    splits, index, keys = {}, {}, []
    for split in sorted({shard.split for shard in shards if shard.samples}):
        of_split = [shard for shard in shards if shard.split == split]
        opened, index[split] = _write_index(folder, split, of_split, classes)
        keys.append(np.array(opened.index["key"]))
        splits[split] = _split_entry(opened, of_split, plugin, classes)
        write_sheet(opened, sections, sheet_path(folder, split))
        opened.close()
    _delete_old_splits(folder, set(splits))
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
        "text_sections": list(sections),
        **({"prompts": plan.prompts} if plan.prompts else {}),
        "splits": splits,
        "shared_subjects": scan.shared,
        "drops": dict(sorted(reasons.items())),
        "rejects": rejects,
        "rescaled": rescaled,
        "expected": dict(plan.expected),
        "warnings": [
            *plan.warnings,
            *rescaled_warnings(rescaled["lines"]),
            *count_warnings(plan.expected, written),
        ],
        "subsets": subset_entries(plan, np.concatenate(keys)),
        "index": index,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _split_entry(
    opened: Shards, shards: Sequence[Receipt], plugin: DatasetPlugin, classes: Sequence[str]
) -> dict[str, Any]:
    counts = add_up(shard.counts for shard in shards)
    return {
        "samples": len(opened),
        "subjects": len(np.unique(opened.index["subject"])),
        "with_text": counts["text"].get("there", 0),
        "rejected": sum(len(shard.rejects) for shard in shards),
        "classes": class_counts(opened.class_indices(plugin), classes),
        "labels": label_counts(opened.index, opened.label_names),
        "sections": counts["sections"],
        "text_kinds": counts["text_kinds"],
        "views": counts["views"],
        **({"synthetic": counts["origins"]} if "origins" in counts else {}),
        "shards": [
            {
                "name": shard.file,
                "samples": shard.samples,
                "bytes": shard.bytes,
                "sha256": shard.sha256,
            }
            for shard in shards
            if shard.samples
        ],
    }


def _write_index(
    folder: Path, split: str, shards: Sequence[Receipt], classes: Sequence[str]
) -> tuple[Shards, dict[str, Any]]:
    """Write `<split>.index.npy` shard by shard; returns the opened split and its entry in the manifest."""
    shards = [shard for shard in shards if shard.samples]
    labels = list(dict.fromkeys(name for shard in shards for name in shard.labels))
    dtype = index_dtype(max(shard.key_bytes for shard in shards), len(labels))
    path = index_path(folder, split)
    hasher = hashlib.sha256()
    with atomic_write(path) as file:
        for block in _npy_blocks(folder, shards, dtype, labels):
            hasher.update(block)
            file.write(block)
    index = np.load(path, mmap_mode="r", allow_pickle=False)
    opened = Shards(folder, split, [shard.file for shard in shards], index, labels, "", classes)
    return opened, {"file": path.name, "sha256": hasher.hexdigest(), "labels": labels}


def _npy_blocks(
    folder: Path, shards: Sequence[Receipt], dtype: np.dtype[Any], labels: Sequence[str]
) -> Iterator[bytes]:
    """The bytes of a .npy file, as `np.save` writes them, without ever holding the whole array."""
    empty: NDArray[Any] = np.zeros(0, dtype)
    header = np.lib.format.header_data_from_array_1_0(empty)
    header["shape"] = (sum(shard.samples for shard in shards),)
    yield _npy_header(header)
    for number, shard in enumerate(shards):
        rows = np.zeros(shard.samples, dtype)
        fill_index(rows, load_rows(folder, shard), number, labels)
        yield rows.tobytes()


def _npy_header(header: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _write_rejects(folder: Path, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Write `rejects.jsonl`: rows left out by the plugin, then unusable images. It holds no report text."""

    def lines() -> Iterator[bytes]:
        with open(folder / RECEIPTS / DROPS, "rb") as drops:
            yield from drops
        for receipt in receipts:
            for reject in receipt.rejects:
                entry = {"source": reject.source, "reason": reject.reason, "key": reject.key}
                entry |= {"split": receipt.split} | ({"detail": reject.detail} if reject.detail else {})
                yield _line(entry)

    return _write_lines(folder / REJECTS, lines())


def _write_rescaled(folder: Path, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Write `rescaled.jsonl`, or delete an old one if no image was rescaled."""
    entries = [one | {"split": receipt.split} for receipt in receipts for one in receipt.rescaled]
    written = _write_lines(folder / RESCALED, map(_line, entries))
    if not entries:
        (folder / RESCALED).unlink()
    return written


def _line(entry: Mapping[str, str]) -> bytes:
    # half characters, which a name on disk that is not UTF-8 leads to, become question marks
    return json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n"


def _write_lines(path: Path, lines: Iterable[bytes]) -> dict[str, Any]:
    """Write a file of lines; returns its entry in the manifest."""
    number, hasher = 0, hashlib.sha256()
    with atomic_write(path) as file:
        for line in lines:
            hasher.update(line)
            file.write(line)
            number += 1
    return {"file": path.name, "lines": number, "sha256": hasher.hexdigest()}


def _delete_old_splits(folder: Path, splits: set[str]) -> None:
    """Delete index and sheet of splits that no longer exist."""
    for path in folder.glob(f"*{INDEX}"):
        split = path.name.removesuffix(INDEX)
        if split not in splits:
            path.unlink()
            sheet_path(folder, split).unlink(missing_ok=True)


def _delete_old_shards(folder: Path, names: set[str]) -> None:
    """Delete shards of an earlier plan, and files that a killed run left incomplete.

    Only shards with a receipt: those were certainly made here.
    """
    for path in (folder / RECEIPTS).glob("*.json"):
        if path.name != SETTINGS and path.stem not in names:
            shard_path(folder, path.stem).unlink(missing_ok=True)
            path.unlink()
    sweep(folder, depth=1)
    for path in folder.glob("*.tar.tmp"):  # as earlier versions named a shard that is being written
        path.unlink()
