"""The texts that `mu prepare` prints: the summary of a prepared folder, and the list of data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.prepare.dataset_scan import Chunk
from medunifier_cli.terminal.table import text_table

NARROW = 24
"""Maximum number of characters of a class name in the table."""


def split_rows(manifest: Mapping[str, Any]) -> list[list[object]]:
    """What was written, a row for each split under a header, with whole numbers and MiB."""
    rows: list[list[object]] = [["split", "images", "patients", "with text", "rejected", "shards", "MiB"]]
    for name, entry in _splits(manifest).items():
        size = sum(shard["bytes"] for shard in entry["shards"]) / 2**20
        numbers = [entry[column] for column in ("samples", "subjects", "with_text", "rejected")]
        rows.append([name, *numbers, len(entry["shards"]), size])
    return rows


def planned_rows(chunks: Iterable[Chunk], drops: Mapping[str, int]) -> list[list[object]]:
    """What would be written, as far as it is known before any image is decoded: a row for each split.

    Args:
        chunks: of a scan, which is done when they have been taken.
        drops: rows that the scan leaves out, by reason, once it is done.
    """
    counts: dict[str, Counter[str]] = {}
    subjects: dict[str, set[str]] = {}
    for chunk in chunks:
        count = counts.setdefault(chunk.split, Counter())
        count["images"] += len(chunk.records)
        count["shards"] += 1
        for record in chunk.records:
            count["with text"] += any(text.strip() for text in record.sections.values())
            count["with a label"] += any(value is not None for value in record.labels.values())
            subjects.setdefault(chunk.split, set()).add(record.subject)
    columns = ("images", "patients", "with text", "with a label", "shards")
    for split, count in counts.items():
        count["patients"] = len(subjects[split])
    rows: list[list[object]] = [["split", *columns]]
    rows += [[split, *(counts[split][column] for column in columns)] for split in _in_order(counts)]
    rows += [
        [f"left out: {reason}", number, *[None] * (len(columns) - 1)] for reason, number in drops.items()
    ]
    return rows


def summary(manifest: Mapping[str, Any]) -> str:
    """Tables of what was written, by split and class, and of what was left out, by reason."""
    splits = _splits(manifest)
    header, *body = split_rows(manifest)
    rows = [[str(name), *(f"{n:,}" for n in numbers), f"{size:,.1f}"] for name, *numbers, size in body]
    lines = text_table([[*map(str, header)], *rows])
    classes = [name for name in manifest["classes"] if any(s["classes"].get(name) for s in splits.values())]
    if classes:
        found = [[name[:NARROW], *(f"{s['classes'][name]:,}" for s in splits.values())] for name in classes]
        lines += ["", *text_table([["one class", *splits], *found])]
    kinds = {kind for entry in splits.values() for kind in entry["text_kinds"]}
    if kinds - {"report"}:
        lines += ["", f"text: {', '.join(sorted(kinds))}"]
    synthetic = [
        f"{n:,} of {origin}" for e in splits.values() for origin, n in e.get("synthetic", {}).items()
    ]
    if synthetic:
        lines += ["", f"synthetic, for training alone: {', '.join(synthetic)}"]
    if manifest["drops"]:
        dropped = sorted(manifest["drops"].items(), key=lambda item: (-item[1], item[0]))
        lines += ["", *text_table([["left out", "rows"], *([reason, f"{n:,}"] for reason, n in dropped)])]
    if manifest["shared_subjects"]:
        lines += ["", f"patients in more than one split: {manifest['shared_subjects']:,}"]
    return "\n".join(lines)


def _splits(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's splits by name, in the order of their use."""
    return {name: manifest["splits"][name] for name in _in_order(manifest["splits"])}


def _in_order(splits: Iterable[str]) -> list[str]:
    """Names of splits in the order of their use, others after them by name."""
    usual = ("train", "valid", "test")
    return sorted(splits, key=lambda name: (usual.index(name) if name in usual else len(usual), name))


def listed_rows(plugins: Mapping[str, DatasetPlugin]) -> list[list[object]]:
    """The list of `mu prepare --list` as rows: name, title, raw files, terms, citation, splits, options."""
    header = ["data set", "title", "needs", "from", "licence", "cite", "splits", "options"]
    rows: list[list[object]] = [[*header]]
    for dataset, plugin in plugins.items():
        options = ", ".join(f"{name}={option.default}" for name, option in plugin.options.items())
        needs = plugin.needs if plugin.needs_raw else ""
        about = (plugin.homepage, plugin.licence, plugin.citation)
        rows.append([dataset, plugin.title, needs, *about, ", ".join(plugin.splits), options])
    return rows


def listing(plugins: Mapping[str, DatasetPlugin]) -> str:
    """The list of `mu prepare --list`: each data set, its raw files, terms, citation, splits, options."""
    blocks = []
    for dataset, plugin in plugins.items():
        lines = [f"{dataset}: {plugin.title}"]
        lines += [f"  needs: {plugin.needs if plugin.needs_raw else 'nothing, it is synthetic'}"]
        about = {"from": plugin.homepage, "licence": plugin.licence, "cite": plugin.citation}
        lines += [f"  {label}: {text}" for label, text in about.items() if text]
        lines += [f"  splits: {', '.join(plugin.splits)}"]
        for name, option in plugin.options.items():
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            lines.append(f"  -o {name}={option.default}  {option.help}{choices}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
