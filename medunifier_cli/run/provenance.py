"""Collect the provenance of a run: package versions, commit of the source tree, command line and data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from medunifier_cli.errors import CheckpointError
from medunifier_cli.files import sha256
from medunifier_cli.parsing import checked, read_json

PACKAGES = (
    "medunifier",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "accelerate",
    "safetensors",
    "numpy",
)


class Start(TypedDict, total=False):
    """One start of a run, as `provenance.json` keeps it."""

    command: list[str]
    versions: dict[str, str]
    git_commit: str
    git_changed: bool


class DataFacts(TypedDict, total=False):
    """What is known of the shards of a data set, see `data_facts`."""

    splits: dict[str, str]


class Provenance(TypedDict, total=False):
    """The content of `provenance.json`."""

    data: dict[str, DataFacts | None]
    starts: list[Start]


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a run with all its keys, those of other versions included; empty without a file.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.exists():
        return {}
    content = read_json(path, dict[str, Any], CheckpointError)
    checked(content, Provenance, str(path), CheckpointError)
    return content


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    by_package = {}
    for package in PACKAGES:
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package


def git_state() -> dict[str, Any]:
    """Commit of the source tree this runs from, and whether it has changes; empty outside a clone."""
    source = Path(__file__).resolve().parent
    try:
        commit = _git(source, "rev-parse", "HEAD")
        return {"git_commit": commit, "git_changed": bool(_git(source, "status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def code_facts() -> dict[str, Any]:
    """What identifies the code that runs: versions, commit, and a hash of this package's source files."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return {**versions(), **git_state(), "source": digest.hexdigest()[:12]}


def _git(folder: Path, *words: str) -> str:
    output = subprocess.run(
        ["git", "-C", str(folder), *words],
        capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10,
    )  # fmt: skip
    return output.stdout.strip()


def command_line() -> list[str]:
    """The command as the user typed it."""
    return ["mu", *sys.argv[1:]]


def data_facts(folder: Path, splits: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Shards folder and the hash of its manifest, which holds the hash of every shard.

    Args:
        folder: of the shards.
        splits: hash of the contents of each split that a run is trained or measured on.
    """
    manifest = folder / "manifest.json"
    facts = {"shards": str(folder), "manifest": sha256(manifest) if manifest.exists() else "none"}
    return {**facts, "splits": dict(splits)} if splits else facts
