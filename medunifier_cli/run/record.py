"""The folder of a run: its paths, its recipe and provenance, and the lock of the process that trains it.

runs/<name>/  recipe.yaml provenance.json log.jsonl tokenizer/ checkpoints/ results/ samples/
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from medunifier_cli.errors import CheckpointError
from medunifier_cli.files import read_text, write_text
from medunifier_cli.recipe.load import dump_recipe
from medunifier_cli.recipe.settings import RENAMED
from medunifier_cli.run.provenance import git_state, versions
from medunifier_cli.terminal.say import say

FREE = (
    "name", "data.workers", "data.shards", "train.processes", "train.log_every", "train.valid_every",
    "train.valid_batches", "train.checkpoint_every", "train.keep", "train.tensorboard", "train.timeout",
    "train.change_contrast",
)  # fmt: skip
"""Recipe keys that may change when a run is resumed, because none of them changes a weight."""
LOCK = ".lock"
"""File that the process which trains a run holds locked."""
LOCK_PATIENCE = 20.0
"""Seconds to wait for the lock, which the processes of a killed run may hold until they have ended."""


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
        self.cache = folder / "cache"

    @property
    def writable(self) -> bool:
        """Whether this user may write results and caches of the run; reading needs no such right."""
        paths = (self.folder, self.results, self.cache)
        return all(os.access(path, os.W_OK) for path in paths if path.exists())

    def begin(
        self, recipe: Any, data: Mapping[str, Any], command: list[str], *,
        free: tuple[str, ...] = (), more: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write the recipe, or compare it with the one that is there, and add this start to the provenance.

        Args:
            recipe: a recipe dataclass.
            data: facts about the shards, see `data_facts`.
            command: the command line.
            free: keys that may differ this time, besides `FREE`.
            more: further facts of this start.

        Raises:
            CheckpointError: the folder holds a run of another recipe.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.recipe.exists():
            self._check_same(recipe, {*FREE, *free})
        else:
            write_text(self.recipe, dump_recipe(recipe))
        started = {
            "command": command,
            "python": platform.python_version(),
            "versions": versions(),
            **git_state(),
            **(more or {}),
        }
        provenance = json.loads(read_text(self.provenance)) if self.provenance.exists() else {"starts": []}
        provenance["data"] = dict(data)
        provenance["starts"].append(started)
        write_text(self.provenance, json.dumps(provenance, indent=1) + "\n")

    def _check_same(self, recipe: Any, free: set[str]) -> None:
        # both from YAML, as a tuple of the recipe is a list in the file
        before, now = (
            flatten(yaml.safe_load(text)) for text in (read_text(self.recipe), dump_recipe(recipe))
        )
        before = {RENAMED.get(key, key): value for key, value in before.items()}
        keys = (before.keys() | now.keys()) - free
        changed = sorted(key for key in keys if before.get(key) != now.get(key))
        if changed:
            what = ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise CheckpointError(
                f"{self.folder} was started with another recipe: {what}{more}; "
                "give this one a name with --run, or start over with --fresh"
            )

    def last_start(self) -> dict[str, Any]:
        """What the provenance says of the last start; empty for a new run."""
        if not self.provenance.exists():
            return {}
        starts = json.loads(read_text(self.provenance)).get("starts")
        return dict(starts[-1]) if starts else {}

    def set_aside(self) -> Path | None:
        """Rename the folder of an existing run for `--fresh`; returns the new path, None without a run.

        Raises:
            CheckpointError: a process trains this run, or the folder holds something else.
        """
        if not self.folder.exists():
            return None
        # a start that was killed early leaves an empty folder, or one with no more than the lock
        if not self.recipe.exists() and any(path.name != LOCK for path in self.folder.iterdir()):
            raise CheckpointError(
                f"{self.folder} holds no run (it has no {self.recipe.name}), so --fresh leaves it as it is; "
                "give the run another name with --run"
            )
        # the lock moves with the folder, and who waited for it looks again, see `locked`
        with self.locked():
            number = 1
            while (old := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
                number += 1
            self.folder.rename(old)
        return old

    @contextmanager
    def locked(self, enabled: bool = True) -> Iterator[None]:
        """Keep other processes from writing to this run, where the file system has locks.

        Args:
            enabled: False holds nothing, for the ranks other than the main one.

        Raises:
            CheckpointError: another process is training it.
        """
        if not enabled:
            yield
            return
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / LOCK).open("wb") as file:
                self._take(file, deadline)
                # another process may have set the run aside while this one waited, and the lock with it
                if self._is_here(file):
                    yield
                    return

    def _take(self, file: IO[bytes], deadline: float) -> None:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CheckpointError(f"{self.folder}: another process is training this run") from None
                time.sleep(0.2)
            except OSError as error:  # Lustre without -o flock, NFS without lockd
                say(
                    f"{self.folder}: the file system has no locks ({error.strerror}); see to it that "
                    "no other process trains this run"
                )
                return

    def _is_here(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), (self.folder / LOCK).stat())
        except FileNotFoundError:
            return False


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
