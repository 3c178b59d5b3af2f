"""`mu prepare` on a miniature download, and all that it left behind."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from medunifier_cli.cli import mu
from medunifier_cli.data.shards import Shards


@dataclass(frozen=True)
class Prepared:
    """A folder of shards."""

    folder: Path
    manifest: dict[str, Any]
    samples: dict[str, dict[str, Any]]
    """Key -> the JSON in the shard, with `split`."""
    pictures: dict[str, bytes]
    rejects: Counter[str]
    """Reasons in rejects.jsonl."""
    said: str
    """Everything printed."""

    def splits(self) -> dict[str, int]:
        return {name: entry["samples"] for name, entry in self.manifest["splits"].items()}


def arguments(dataset: str, raw: Path, out: Path, *options: str) -> list[str]:
    pairs = [part for option in options for part in ("-o", option)]
    line = ["prepare", dataset, "--raw", str(raw), "--out", str(out), "--size", "32", "--shard-size", "20"]
    return [*line, "--workers", "1", *pairs]


def prepare(dataset: str, raw: Path, out: Path, *options: str) -> Prepared:
    """Run the command as a user does; options are `name=value`."""
    before = {path: path.read_bytes() for path in sorted(raw.rglob("*")) if path.is_file()}
    result = CliRunner().invoke(mu, arguments(dataset, raw, out, *options))
    assert result.exit_code == 0, result.output
    assert before == {path: path.read_bytes() for path in sorted(raw.rglob("*")) if path.is_file()}
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    samples, pictures = {}, {}
    for split in manifest["splits"]:
        shards = Shards.open(out, split)
        for i in range(len(shards)):
            body, meta = shards.read(i)
            key = shards.index["key"][i].decode()
            samples[key], pictures[key] = {**meta, "split": split}, body
        shards.close()
    lines = (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = Counter(json.loads(line)["reason"] for line in lines)
    assert reasons == manifest["drops"]
    return Prepared(out, manifest, samples, pictures, reasons, result.output)


def refusal(dataset: str, raw: Path, out: Path, *options: str) -> str:
    """The one line a user reads when the download cannot be used."""
    result = CliRunner().invoke(mu, arguments(dataset, raw, out, *options))
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    notes = ("warning: ", "columns: ", "no column of splits", "all rows are in")
    said = [line for line in lines if not line.startswith(notes) and ": images of " not in line]
    assert len(said) == 1, said
    return said[0]
