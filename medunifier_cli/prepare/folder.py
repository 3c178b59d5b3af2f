"""Names of the files in a prepared folder.

Next to the shards `<split>-<nnnnnn>.tar` and `manifest.json`, which `data.shards` defines as it reads them:

    <split>.index.npy       index of a split, memory-mapped by the loader
    sheet-<split>.png       contact sheet
    rejects.jsonl           rows and images left out, and why
    .progress/              everything a restart needs:
        settings.json           what the shards depend on
        drops.jsonl             rows left out by the plugin
        <split>-<nnnnnn>.json   receipt of a finished shard
        lock-*                  locks of the running parts, and of the part that writes the manifest
"""

from __future__ import annotations

from pathlib import Path

REJECTS = "rejects.jsonl"
INDEX = ".index.npy"
"""Ending of a split's index."""
RECEIPTS = ".progress"
"""Folder with one small file per finished shard, from which a restart resumes."""
SETTINGS = "settings.json"
"""In the folder of receipts."""
DROPS = "drops.jsonl"
"""In the folder of receipts: the rows the plugin left out, in the order of the scan."""


def index_path(folder: Path, split: str) -> Path:
    """Index of a split."""
    return folder / f"{split}{INDEX}"


def sheet_path(folder: Path, split: str) -> Path:
    """Contact sheet of a split."""
    return folder / f"sheet-{split}.png"


def shard_path(folder: Path, name: str) -> Path:
    """Tar of the shard `name`, `<split>-<nnnnnn>`."""
    return folder / f"{name}.tar"


def receipt_path(folder: Path, name: str) -> Path:
    """Receipt of the shard `name`, `<split>-<nnnnnn>`."""
    return folder / RECEIPTS / f"{name}.json"
