"""The folder of a run: its paths, its recipe and provenance, and the lock of the process that trains it.

runs/<name>/  recipe.yaml provenance.json log.jsonl tokenizer/ checkpoints/ results/ samples/
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from medunifier_cli.errors import CheckpointError
from medunifier_cli.files import make_folder, open_lock, write_text
from medunifier_cli.parsing import parse_yaml, read_yaml
from medunifier_cli.recipe.load import dump_recipe
from medunifier_cli.recipe.settings import RENAMED
from medunifier_cli.run.deleting import put_back
from medunifier_cli.run.lowered import LOWERED, NOT_FINITE, dead_ends, ended_at, lowered
from medunifier_cli.run.provenance import git_state, read_provenance, versions
from medunifier_cli.temporary import sweep
from medunifier_cli.terminal.say import say

FREE = (
    "name", "data.workers", "data.shards", "data.features", "train.processes", "train.log_every",
    "train.valid_every", "train.valid_batches", "train.patience", "train.checkpoint_every", "train.keep",
    "train.tensorboard", "train.trackers", "train.project", "train.tracker_reports", "train.skip_limit",
    "train.timeout", "train.change_contrast", "train.compile",
)  # fmt: skip
"""Recipe keys that may change when a run is resumed, because none of them changes a weight; `train.compile`
does by rounding alone, and a run that cannot be compiled must resume. Cached features in place of live ones
are those of a GPU, and on a CPU rounded, which the provenance of the start says."""
LOCK = ".lock"
"""File that the process which trains a run holds locked."""
JOB = "fresh-in-job"
"""File that names the SLURM job which began a run with `--fresh-in-job`."""
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
        self.profile = folder / "profile"
        self.elsewhere = False
        """Whether `results` is a folder of the user's choice."""

    @property
    def writable(self) -> bool:
        """Whether this user may write results and caches of the run; reading needs no such right."""
        if self.elsewhere:  # the next folder above it that is there
            there = next(path for path in (self.results, *self.results.absolute().parents) if path.exists())
            return os.access(there, os.W_OK)
        paths = (self.folder, self.results, self.cache)
        return all(os.access(path, os.W_OK) for path in paths if path.exists())

    def begin(
        self, recipe: Any, data: Mapping[str, Any], command: list[str], *,
        free: tuple[str, ...] = (), more: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write recipe and data, or compare them with those that are there, and add this start.

        Args:
            recipe: a recipe dataclass.
            data: of each data set, facts about its shards, see `data_facts`.
            command: the command line.
            free: keys that may differ this time, besides `FREE`.
            more: further facts of this start.

        Raises:
            CheckpointError: the folder holds a run of another recipe, or of other data.
        """
        make_folder(self.folder, CheckpointError)
        self.sweep()
        # of checkpoints, which this process alone writes while it holds the lock
        for folder in (self.checkpoints, self.folder / "best"):
            put_back(folder)
        for stale in (*self.folder.glob("*/.writing-step-*"), *self.folder.glob("*/.deleting-step-*")):
            shutil.rmtree(stale, ignore_errors=True)
        provenance = self._provenance()
        rates: dict[str, list[float]] = {}
        if self.recipe.exists():
            rates = self._check_same(recipe, {*FREE, *free}, provenance.get("starts", []))
        else:
            write_text(self.recipe, dump_recipe(recipe))
        started = {
            "command": command,
            "python": platform.python_version(),
            "versions": versions(),
            **git_state(),
            "deterministic": recipe.train.deterministic,
            **({LOWERED: rates} if rates else {}),
            **(more or {}),
        }
        # those of the first start are kept: later ones are compared with them
        provenance["data"] = self._same_data(provenance.get("data") or {}, data)
        provenance.setdefault("starts", []).append(started)
        write_text(self.provenance, json.dumps(provenance, indent=1) + "\n")
        if rates:  # after the provenance, which says that they may differ, should a kill come in between
            write_text(self.recipe, dump_recipe(recipe))

    def _provenance(self) -> dict[str, Any]:
        """The provenance so far; a damaged one is put aside, as a resumed run does not need it."""
        try:
            return read_provenance(self.provenance)
        except CheckpointError as error:
            aside = self.provenance.with_name("provenance.damaged.json")
            self.provenance.replace(aside)
            say(f"{error}; kept as {aside.name}, and a new one is begun", always=True)
            return {}

    def withdraw(self) -> None:
        """Take back the first start of a run that holds no work yet, so that any recipe may be the next.

        A log, a checkpoint or encoded images are work, and leave the run as it is.
        """
        started = {self.recipe.name, self.provenance.name, self.tokenizer.name}
        if {path.name for path in self.folder.iterdir()} - started - {LOCK, JOB, self.profile.name}:
            return
        self.recipe.unlink(missing_ok=True)
        self.provenance.unlink(missing_ok=True)
        shutil.rmtree(self.tokenizer, ignore_errors=True)  # another recipe may read other texts

    def last_start(self) -> dict[str, Any]:
        """What the provenance says of the last start; empty for a new run."""
        return dict((read_provenance(self.provenance).get("starts") or [{}])[-1])

    def dead_ends(self) -> set[str]:
        """Hashes of the checkpoints that this start must not resume from, see `lowered`."""
        return dead_ends(read_provenance(self.provenance).get("starts", []))

    def note_not_finite(self, step: int, dead_end: str = "") -> None:
        """Record that this start ended because its numbers were not finite, see `lowered.ended_at`."""
        provenance = self._provenance()
        if provenance.get("starts"):
            provenance["starts"][-1][NOT_FINITE] = ended_at(step, dead_end)
            write_text(self.provenance, json.dumps(provenance, indent=1) + "\n")

    def _check_same(self, recipe: Any, free: set[str], starts: list[Any]) -> dict[str, list[float]]:
        """The rates that this start lowers, if it may; empty for the recipe that is there."""

        before, now = self._before_and_now(recipe)
        changed = _changed(before, now, free)
        rates = lowered(before, now, changed, starts)
        if changed and not rates:
            what = ", ".join(_change(key, before, now) for key in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise CheckpointError(
                f"{self.folder} was started with another recipe: {what}{more}; "
                "give this one a name with --name, or start over with --fresh"
            )
        return rates

    def changes(self, recipe: Any) -> list[str]:
        """Settings in which a recipe differs from the run's own, without those that may always change.

        Raises:
            CheckpointError: the run's recipe cannot be read.
        """
        if not self.recipe.exists():
            return []
        before, now = self._before_and_now(recipe)
        return [_change(key, before, now) for key in _changed(before, now, set(FREE))]

    def _before_and_now(self, recipe: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of the run and those of a recipe, by dotted key."""

        # both from YAML, as a tuple of the recipe is a list in the file
        def settings(made: Any) -> dict[str, Any]:
            return flatten(parse_yaml(dump_recipe(made), dict[str, Any], "the recipe"))

        advice = "put the file back, or start over with --fresh"
        saved = flatten(read_yaml(self.recipe, dict[str, Any], CheckpointError, advice))
        # a key that a later version added had its default before
        before = settings(type(recipe)()) | {RENAMED.get(key, key): value for key, value in saved.items()}
        return before, settings(recipe)

    def sweep(self) -> None:
        """Remove what killed processes left half-written in the run, at any depth that it has."""
        # two levels down: `page/<search>/images`
        sweep(self.folder, depth=3)

    def _same_data(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of the first start, completed by what an earlier version did not note.

        The folder is none of them: shards may be moved, together with the run or without it.
        """
        known: dict[str, Any] = {name: dict(facts) for name, facts in before.items() if facts}
        for name, facts in now.items():
            old, hashes = known.setdefault(name, dict(facts)), facts.get("splits", {})
            for split in hashes.keys() & old.get("splits", {}).keys():
                if hashes[split] != old["splits"][split]:
                    raise self._other_data(f"split {split!r} of {name}", facts)
            if "splits" not in old and old.get("manifest") != facts.get("manifest"):
                raise self._other_data(name, facts)
            if hashes:
                old["splits"] = {**hashes, **old.get("splits", {})}
        return known

    def _other_data(self, what: str, facts: Mapping[str, Any]) -> CheckpointError:
        return CheckpointError(
            f"{facts.get('shards', '')}: {what} has changed since {self.folder} was started; put those "
            "shards back, or give the run another name with --name, or start over with --fresh"
        )

    def set_aside(self) -> Path | None:
        """Rename the folder of an existing run for `--fresh`; returns the new path, None without a run.

        Raises:
            CheckpointError: a process trains this run, or the folder holds something else.
        """
        if not self.folder.exists():
            return None
        # a start that was killed early leaves an empty folder, or one with no more than the lock; and
        # `--profile` one with its own folder alone
        own = (LOCK, JOB, self.profile.name)
        if not self.recipe.exists() and any(path.name not in own for path in self.folder.iterdir()):
            raise CheckpointError(
                f"{self.folder} holds no run (it has no {self.recipe.name}), so --fresh leaves it as it is; "
                "give the run another name with --name"
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
            make_folder(self.folder, CheckpointError)
            with open_lock(self.folder / LOCK, CheckpointError) as file:
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
                    "no other process trains this run",
                    always=True,
                )
                return

    def _is_here(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), (self.folder / LOCK).stat())
        except FileNotFoundError:
            return False


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> list[str]:
    keys = (before.keys() | now.keys()) - free
    return sorted(key for key in keys if before.get(key) != now.get(key))


def _change(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"{key} was {before.get(key)!r}, now {now.get(key)!r}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
