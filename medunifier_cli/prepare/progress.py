"""What a person sees of `mu prepare`: a bar on a terminal, plain lines otherwise, a table at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from medunifier_cli.data.contract import DatasetPlugin

PLAIN_EVERY = 10.0
"""Seconds between plain lines."""
NARROW = 24
"""Characters of a class name in the table."""


class PrepareProgress:
    """Progress over the rows of a plan, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._total: int | None = None
        self._rows = self._worked = 0
        self._started = self._spoke = 0.0

    @contextlib.contextmanager
    def running(self, total: int | None) -> Iterator[None]:
        """Show progress while the block runs; `total` rows, None where nobody knows."""
        self._total, self._started = total, time.monotonic()
        self._spoke = self._started
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="row", dynamic_ncols=True, file=sys.stderr, smoothing=0.1)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def done(self, rows: int, rejects: int, skipped: bool = False) -> None:
        """`rows` more are dealt with; `skipped` needed no decoding."""
        self._rows += rows
        self._worked += 0 if skipped else rows
        if self._bar is not None:
            self._bar.update(rows)
            if rejects:
                self._bar.set_postfix_str(f"{rejects:,} rejected", refresh=False)
            return
        now = time.monotonic()
        if now - self._spoke >= PLAIN_EVERY:
            self._spoke = now
            of = f" of {self._total:,}" if self._total else ""
            rate = self._worked / (now - self._started)
            self.say(f"{self._rows:,}{of} rows, {rejects:,} rejected, {rate:.0f} images/s")

    def say(self, line: str) -> None:
        """One line on stderr, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def say_warnings(self, lines: Sequence[str]) -> None:
        """Each as one line that begins with `warning:`."""
        for line in lines:
            self.say(f"warning: {line}")


def summary(manifest: Mapping[str, Any]) -> str:
    """The table at the end: what was written by split, what was left out by reason."""
    order = [name for name in ("train", "valid", "test") if name in manifest["splits"]]
    splits = {name: manifest["splits"][name] for name in dict.fromkeys([*order, *manifest["splits"]])}
    rows = [["split", "images", "patients", "with text", "rejected", "shards", "MiB"]]
    for name, entry in splits.items():
        size = sum(shard["bytes"] for shard in entry["shards"]) / 2**20
        numbers = [entry[what] for what in ("samples", "subjects", "with_text", "rejected")]
        rows.append([name, *(f"{n:,}" for n in numbers), str(len(entry["shards"])), f"{size:,.1f}"])
    lines = _table(rows)
    classes = [name for name in manifest["classes"] if any(s["classes"].get(name) for s in splits.values())]
    if classes:
        header = ["one class", *splits]
        body = [[name[:NARROW], *(f"{s['classes'][name]:,}" for s in splits.values())] for name in classes]
        lines += ["", *_table([header, *body])]
    kinds = {kind for entry in splits.values() for kind in entry["text_kinds"]}
    if kinds - {"report"}:
        lines += ["", f"text: {', '.join(sorted(kinds))}"]
    if manifest["drops"]:
        dropped = sorted(manifest["drops"].items(), key=lambda item: (-item[1], item[0]))
        lines += ["", *_table([["left out", "rows"], *([why, f"{n:,}"] for why, n in dropped)])]
    if manifest["shared_subjects"]:
        lines += ["", f"patients in more than one split: {manifest['shared_subjects']:,}"]
    return "\n".join(lines)


def listing(plugins: Mapping[str, DatasetPlugin]) -> str:
    """What `mu prepare --list` prints: each data set, its files, terms, citation, splits and options."""
    blocks = []
    for name, plugin in plugins.items():
        lines = [f"{name}: {plugin.title}"]
        lines += [f"  needs: {plugin.needs if plugin.needs_raw else 'nothing; the data set is synthetic'}"]
        about = {"from": plugin.homepage, "licence": plugin.licence, "cite": plugin.citation}
        lines += [f"  {label}: {text}" for label, text in about.items() if text]
        lines += [f"  splits: {', '.join(plugin.splits)}"]
        for option, what in plugin.options.items():
            choices = f" ({', '.join(what.choices)})" if what.choices else ""
            lines.append(f"  -o {option}={what.default}  {what.help}{choices}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
