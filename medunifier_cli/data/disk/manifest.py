"""The manifest of a folder of shards, as readers rely on it: declared types, and its version.

`mu prepare` writes more (`prepare.join`); what only people read is not declared here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

import msgspec

from medunifier_cli.errors import DataError
from medunifier_cli.parsing import Count, read_json

MANIFEST = "manifest.json"
VERSION = 1
"""Version of the manifest's format."""
FileName = Annotated[str, msgspec.Meta(pattern=r"^[^/\x00]{1,255}\Z")]
"""Name of a file in the folder itself: a manifest cannot lead a reader elsewhere."""
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""SHA-256 in hex."""


class ShardEntry(TypedDict):
    """One tar."""

    name: FileName
    bytes: Count
    sha256: Digest


class _SplitEntry(TypedDict):
    shards: list[ShardEntry]


class SplitEntry(_SplitEntry, total=False):
    """One split."""

    samples: Count
    synthetic: dict[str, Count]
    """Origin -> number of synthetic images; absent where all are real."""


class IndexEntry(TypedDict):
    """The index of one split."""

    file: FileName
    sha256: Digest
    labels: list[str]


class _SubsetEntry(TypedDict):
    keys: list[str]
    rule: str
    seed: int | None


class SubsetEntry(_SubsetEntry, total=False):
    """A list of sample keys."""

    not_written: list[str]
    """Those whose image was rejected."""


class ImageEntry(TypedDict, total=False):
    """How the images were made."""

    size: Count
    """Edge in pixels."""
    format: str


class Manifest(TypedDict, total=False):
    """What readers use of `manifest.json`."""

    version: Count
    dataset: str
    plugin: str
    """Its plugin, where `mu prepare --name` gave the data set another name."""
    text_sections: list[str]
    prompts: dict[str, dict[str, list[str]]]
    """Name of the set -> class -> prompts."""
    samples: Count
    image: ImageEntry
    classes: list[str]
    splits: dict[str, SplitEntry]
    subsets: dict[str, SubsetEntry]
    index: dict[str, IndexEntry]


class _Head(TypedDict, total=False):
    version: int
    dataset: str
    plugin: str


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of shards; None if it has none.

    Raises:
        DataError: the manifest cannot be read, is none of ours, or has the format of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    head = read_json(path, _Head, DataError, "run `mu prepare` again")
    if head.get("version", VERSION) != VERSION:
        raise DataError(
            f"{path}: has version {head['version']} of its format, and this `mu` reads version {VERSION}; "
            f"{again(head)}, into another folder"
        )
    return read_json(path, Manifest, DataError, again(head))


def again(head: _Head | Manifest) -> str:
    """What to do about damaged shards, as the end of a message, by what their manifest says."""
    name, plugin = head.get("dataset", ""), head.get("plugin", "")
    words = ["mu prepare", *([plugin, f"--name {name}"] if plugin else [name] if name else [])]
    # of a table under its own name the manifest does not say where it lies
    return f"run `{' '.join(words)}` again" + (", with the same --raw and -o" if plugin else "")
