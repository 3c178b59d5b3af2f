"""The texts that `mu prepare` prints: the summary of a prepared folder, and the list of data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.terminal.table import text_table

NARROW = 24
"""Maximum number of characters of a class name in the table."""


def summary(manifest: Mapping[str, Any]) -> str:
    """Tables of what was written, by split and class, and of what was left out, by reason."""
    order = [name for name in ("train", "valid", "test") if name in manifest["splits"]]
    splits = {name: manifest["splits"][name] for name in dict.fromkeys([*order, *manifest["splits"]])}
    rows = [["split", "images", "patients", "with text", "rejected", "shards", "MiB"]]
    for name, entry in splits.items():
        size = sum(shard["bytes"] for shard in entry["shards"]) / 2**20
        numbers = [entry[column] for column in ("samples", "subjects", "with_text", "rejected")]
        rows.append([name, *(f"{n:,}" for n in numbers), str(len(entry["shards"])), f"{size:,.1f}"])
    lines = text_table(rows)
    classes = [name for name in manifest["classes"] if any(s["classes"].get(name) for s in splits.values())]
    if classes:
        header = ["one class", *splits]
        body = [[name[:NARROW], *(f"{s['classes'][name]:,}" for s in splits.values())] for name in classes]
        lines += ["", *text_table([header, *body])]
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
