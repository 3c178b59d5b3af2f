"""A run's folder: its recipe, where it came from, its log, and who is writing to it.

runs/<name>/  recipe.yaml provenance.json log.jsonl tokenizer/ checkpoints/ results/ samples/
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medunifier_cli.checkpoint.store import file_hash
from medunifier_cli.errors import CheckpointError
from medunifier_cli.recipe.load import dump_recipe

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
FREE = (
    "name", "data.workers", "data.shards", "train.processes", "train.log_every", "train.valid_every",
    "train.valid_batches", "train.checkpoint_every", "train.keep", "train.tensorboard",
)  # fmt: skip
"""Recipe keys that may change when a run goes on: none of them moves a weight."""
LOCK_PATIENCE = 20.0
"""Seconds to wait for a killed run's processes to let go of the folder."""


class Run:
    """Paths of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        self.provenance = folder / "provenance.json"
        self.log = folder / "log.jsonl"
        self.tokenizer = folder / "tokenizer"
        self.checkpoints = folder / "checkpoints"
        self.results = folder / "results"
        self.samples = folder / "samples"

    def begin(self, recipe: Any, data: Mapping[str, Any], command: list[str]) -> None:
        """Write or check the recipe, and note this start in the provenance.

        Raises:
            CheckpointError: the folder holds a run of another recipe.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.recipe.exists():
            self._check_same(recipe)
        else:
            write_whole(self.recipe, dump_recipe(recipe))
        started = {
            "command": command,
            "python": platform.python_version(),
            "versions": versions(),
            **git_state(),
        }
        known = json.loads(self.provenance.read_text()) if self.provenance.exists() else {"starts": []}
        known["data"] = dict(data)
        known["starts"].append(started)
        write_whole(self.provenance, json.dumps(known, indent=1) + "\n")

    def _check_same(self, recipe: Any) -> None:
        import yaml

        then, now = (
            flatten(yaml.safe_load(self.recipe.read_text())),
            flatten(yaml.safe_load(dump_recipe(recipe))),
        )
        moved = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
        moved = [key for key in moved if key not in FREE]
        if moved:
            what = ", ".join(f"{key} was {then.get(key)!r}, now {now.get(key)!r}" for key in moved[:3])
            more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
            raise CheckpointError(
                f"{self.folder} was started with another recipe: {what}{more}; "
                "give this one a name with --run, or start over with --fresh"
            )

    def set_aside(self) -> Path | None:
        """Move an existing run out of the way for `--fresh`; returns where to."""
        if not self.folder.exists():
            return None
        number = 1
        while (old := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            number += 1
        self.folder.rename(old)
        return old

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to this run.

        Raises:
            CheckpointError: another process is training it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise CheckpointError(
                            f"{self.folder}: another process is training this run"
                        ) from None
                    time.sleep(0.2)
            yield


class Log:
    """`log.jsonl`: one line per event, cut back to the checkpoint that a run goes on from.

    Args:
        path: the file.
        step: steps done; lines of later steps, and a torn last line, are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in read_log(path) if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log."""
    return read_lines(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file of JSON lines; none where there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # torn by a kill while it was written
    return lines


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that readers, and a kill, see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def versions() -> dict[str, str]:
    """Versions of the packages that make the numbers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state() -> dict[str, Any]:
    """Commit of the source tree this runs from, and whether it was changed; nothing outside a clone."""
    source = Path(__file__).resolve().parent
    try:
        commit = _git(source, "rev-parse", "HEAD")
        return {"git_commit": commit, "git_changed": bool(_git(source, "status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def command_line() -> list[str]:
    """The command as the user typed it."""
    return ["mu", *sys.argv[1:]]


def as_plain(recipe: Any) -> dict[str, Any]:
    """A recipe as nested dicts, for JSON."""
    return dataclasses.asdict(recipe)


def data_facts(folder: Path) -> dict[str, Any]:
    """Hash of the manifest, which hashes every shard."""
    manifest = folder / "manifest.json"
    return {"shards": str(folder), "manifest": file_hash(manifest) if manifest.exists() else "none"}
