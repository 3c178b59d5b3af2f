"""Write and read checkpoints; no other module depends on their disk format.

    checkpoints/step-00000120/
        model.safetensors optimizer.safetensors rng.safetensors   tensors by name
        checkpoint.json   step, facts, and the SHA-256 and size of each tensor file
        DONE              SHA-256 of checkpoint.json

A checkpoint is written to a temporary folder, fsynced, hashed and renamed, so a folder under its final name
is complete. It is verified all the same when it is read, and a damaged one is skipped for the previous one.
Only whole ones count towards the number that is kept, so a damaged one never costs a good one its place.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medunifier_cli.errors import CheckpointError
from medunifier_cli.files import sha256, sync
from medunifier_cli.parsing import Count, parse_json
from medunifier_cli.run.deleting import DONE, delete, delete_left_over, free, move_away, reason_of, say_kept
from medunifier_cli.terminal.say import say

NAME = re.compile(r"step-(\d{8})")
FACTS = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to resume as if it had never stopped."""

    step: int
    """Optimiser steps done."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name without ending -> tensor name -> tensor."""
    facts: Mapping[str, Any]
    """Anything else, as JSON."""


class _File(TypedDict):
    sha256: str
    bytes: Count


class _Index(TypedDict):
    """`checkpoint.json`."""

    step: Count
    facts: dict[str, Any]
    files: dict[str, _File]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoint` under `folder`, then delete all but the newest `keep` of those up to its step.

    Raises:
        CheckpointError: the disk is full or cannot be written; earlier checkpoints are kept.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".writing-step-{checkpoint.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        delete_left_over(folder)
        temporary = free(temporary)
        temporary.mkdir()
        _write(temporary, checkpoint)
        # One of this step is damaged, or whole and saved again once it is validated: `tidy` deletes it, and
        # not before this one has its name.
        move_away(final)
        temporary.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        before = steps(folder)
        left = f"the checkpoint of step {before[-1]} is untouched" if before else "there is no earlier one"
        raise CheckpointError(f"{final}: cannot be written ({reason_of(error)}); {left}") from error
    tidy(folder, checkpoint.step, keep)
    return final


def tidy(folder: Path, step: int, keep: int) -> None:
    """Delete what the whole checkpoint of `step` makes superfluous, and what a killed writer left.

    Of the checkpoints up to this step the newest `keep` stay. A start does it too: the last save of a run has
    no later one to make up for a kill before its deletions.
    """
    delete_left_over(folder)
    for path in _superseded(folder, step, keep):
        try:
            delete(move_away(path))
        except OSError as error:
            say_kept(path, error)


def steps(folder: Path) -> list[int]:
    """Steps with a whole checkpoint, ascending, as far as a look tells: the record is the one that was
    written, names the step that the folder's name does, and the files have their sizes. `load` also hashes
    them."""
    return [step for step, path in _named(folder) if _looks_whole(path, step)]


def load(path: Path, only: tuple[str, ...] = ()) -> Checkpoint:
    """Read one checkpoint folder and verify it.

    Args:
        path: a folder `step-<n>`.
        only: names of the tensor files to read; empty for all.

    Raises:
        CheckpointError: it is incomplete, or its bytes are not those that were written.
    """
    index = _index(path)
    tensors = {}
    try:
        for name, expected in index["files"].items():
            stem = name.removesuffix(".safetensors")
            if only and stem not in only:
                continue
            if Path(name).name != name:
                raise CheckpointError(f"{path / FACTS}: names a file outside of the folder")
            if sha256(path / name) != expected["sha256"]:
                raise CheckpointError(f"{path / name}: not the bytes that were written")
            tensors[stem] = load_file(path / name)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: incomplete checkpoint ({reason_of(error)})") from error
    if missing := [stem for stem in only if stem not in tensors]:
        raise CheckpointError(f"{path / FACTS}: names no tensors of the {' and '.join(missing)}")
    if (named := NAME.fullmatch(path.name)) and int(named[1]) != index["step"]:
        raise CheckpointError(f"{path}: holds the checkpoint of step {index['step']}")
    return Checkpoint(index["step"], tensors, index["facts"])


def stage_facts(checkpoint: Checkpoint, folder: Path) -> Mapping[str, Any]:
    """What the stage noted when it saved a checkpoint of the run in `folder`.

    Raises:
        CheckpointError: it noted nothing; another program wrote the checkpoint.
    """
    facts = checkpoint.facts.get("stage")
    if not isinstance(facts, Mapping):
        raise CheckpointError(
            f"{folder}: its checkpoint does not say what it was trained with; start over with --fresh"
        )
    return facts


def newest(
    folder: Path, only: tuple[str, ...] = (), refusal: Callable[[Checkpoint], str] = lambda _: ""
) -> Checkpoint | None:
    """The newest intact checkpoint under `folder`, or None; damaged ones are skipped with a warning.

    Args:
        folder: of checkpoints.
        only: as in `load`.
        refusal: why an intact one will not do either; empty if it will.

    Raises:
        CheckpointError: this user may not read it. An older one in its place would be another model, in
            silence as far as the results go.
    """
    for _, path in reversed(_named(folder)):
        try:
            checkpoint = load(path, only)
            if reason := refusal(checkpoint):
                raise CheckpointError(f"{path}: {reason}")
            return checkpoint
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):
                raise CheckpointError(
                    f"{path}: no permission to read it; ask its owner for it, as with `chmod -R g+rX`"
                ) from error
            say(f"warning: {error}; trying the previous checkpoint")
    return None


def identity(folder: Path, step: int) -> str:
    """Short hash that identifies a checkpoint in result files: of its index, which holds all other hashes."""
    return (folder / f"step-{step:08d}" / DONE).read_bytes().strip().decode()[:16]


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    files = {}
    for stem, tensors in checkpoint.tensors.items():
        path = folder / f"{stem}.safetensors"
        path.touch()
        usual = stat.S_IMODE(
            path.stat().st_mode
        )  # as the umask has it; safetensors makes it the owner's alone
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        path.chmod(usual)
        sync(path)
        files[path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    index = {"step": checkpoint.step, "facts": checkpoint.facts, "files": files}
    text = json.dumps(index, indent=1, sort_keys=True).encode()
    for name, content in ((FACTS, text), (DONE, hashlib.sha256(text).hexdigest().encode())):
        (folder / name).write_bytes(content)
        sync(folder / name)
    sync(folder)


def _named(folder: Path) -> list[tuple[int, Path]]:
    """Everything that is named as a checkpoint, with the step of the name, ascending."""
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name)))


def _index(path: Path) -> _Index:
    """`checkpoint.json` of a folder, if it is the one that was written.

    Raises:
        CheckpointError: it is not, or cannot be read.
    """
    try:
        text = (path / FACTS).read_bytes()
        done = (path / DONE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: incomplete checkpoint ({reason_of(error)})") from error
    if done.strip() != hashlib.sha256(text).hexdigest().encode():
        raise CheckpointError(f"{path}: {FACTS} is not the one that was written")
    index = parse_json(text, _Index, str(path / FACTS), CheckpointError)
    if any(name != Path(name).name for name in index["files"]):
        raise CheckpointError(f"{path / FACTS}: names a file outside of its folder")
    return index


def _looks_whole(path: Path, step: int) -> bool:
    """Whether a folder holds a whole checkpoint of `step`, as far as sizes tell."""
    try:
        index = _index(path)
        return index["step"] == step and all(
            (path / name).stat().st_size == expected["bytes"] for name, expected in index["files"].items()
        )
    except CheckpointError as error:
        # there, but not for this user; whoever loads it hears why
        return isinstance(error.__cause__, PermissionError)
    except OSError:
        return False


def _is_intact(path: Path) -> bool:
    """Whether all files of a folder that looks whole are the bytes that were written."""
    try:
        files = _index(path)["files"]
        return all(sha256(path / name) == expected["sha256"] for name, expected in files.items())
    except (CheckpointError, OSError):
        return False


def _superseded(folder: Path, written: int, keep: int) -> Iterator[Path]:
    """The folders that the checkpoint of step `written`, which is whole, makes superfluous.

    Steps after it are left alone: it was written by a run that resumed before them, so they are damaged or
    could not be read, and the run overwrites them when it gets there. Nor are they counted: with `keep` 1
    a damaged one would take the place of each good one until then.
    """
    earlier = [(step, path) for step, path in reversed(_named(folder)) if step < written]
    kept, intact = 1, False
    for step, path in earlier:
        if kept < keep and _looks_whole(path, step):
            # One of those that stay is read and hashed: should the newest be damaged later, the run resumes
            # from this one. To hash all would cost reading them all at each save.
            intact = intact or _is_intact(path)
            if intact:
                kept += 1
                continue
        if _is_ours(path, step):
            yield path


def _is_ours(path: Path, step: int) -> bool:
    """Whether a folder was written as the checkpoint of `step`, whole or not; what somebody else put there,
    or a copy under another name, is not ours to delete."""
    try:
        return _index(path)["step"] == step
    except CheckpointError:
        return path.is_dir() and ((path / FACTS).exists() or (path / DONE).exists())
