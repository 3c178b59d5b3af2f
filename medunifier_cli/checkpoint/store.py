"""Write and read checkpoints; no other module depends on their disk format.

    checkpoints/step-00000120/
        model.safetensors optimizer.safetensors rng.safetensors   tensors by name
        checkpoint.json   step, facts, and the SHA-256 and size of each tensor file
        DONE              SHA-256 of checkpoint.json

A checkpoint is written to a temporary folder, fsynced, hashed and renamed, so a folder under its final name
is complete. It is verified all the same when it is read, and a damaged one is skipped for the previous one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medunifier_cli.errors import CheckpointError
from medunifier_cli.files import sha256, sync
from medunifier_cli.parsing import Count, parse_json
from medunifier_cli.terminal.say import say

NAME = re.compile(r"step-(\d{8})")
DONE, FACTS = "DONE", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to resume as if it had never stopped."""

    step: int
    """Optimiser steps done."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name without ending -> tensor name -> tensor."""
    facts: Mapping[str, Any]
    """Anything else, as JSON."""


class FileFacts(TypedDict):
    """What the index says of a tensor file."""

    sha256: str


class Index(TypedDict):
    """The content of `checkpoint.json`."""

    step: Count
    facts: dict[str, Any]
    files: dict[str, FileFacts]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoint` under `folder`, then delete all but the newest `keep`.

    Raises:
        CheckpointError: the disk is full or cannot be written; earlier checkpoints are kept.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".writing-step-{checkpoint.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Left over from a writer that was killed.
        for stale in (*folder.glob(".writing-*"), *folder.glob(".deleting-*")):
            shutil.rmtree(stale)
        temporary.mkdir()
        _write(temporary, checkpoint)
        if final.exists():  # damaged: the run would have resumed from an intact one
            _remove(final)
        temporary.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        before = steps(folder)
        left = f"the checkpoint of step {before[-1]} is untouched" if before else "there is no earlier one"
        raise CheckpointError(f"{final}: cannot be written ({_reason(error)}); {left}") from error
    for step in steps(folder)[:-keep]:
        _remove(folder / f"step-{step:08d}")
    return final


def steps(folder: Path) -> list[int]:
    """Steps with a checkpoint folder, ascending; only `load` tells whether a folder is intact."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := NAME.fullmatch(path.name)))


def load(path: Path, only: tuple[str, ...] = ()) -> Checkpoint:
    """Read one checkpoint folder and verify it.

    Args:
        path: a folder `step-<n>`.
        only: names of the tensor files to read; empty for all.

    Raises:
        CheckpointError: it is incomplete, or its bytes are not those that were written.
    """
    try:
        text = (path / FACTS).read_bytes()
        if (path / DONE).read_bytes().strip() != hashlib.sha256(text).hexdigest().encode():
            raise CheckpointError(f"{path}: {FACTS} is not the one that was written")
        # a right hash says that nothing was damaged, not that this version can read it
        index = parse_json(text, Index, str(path / FACTS), CheckpointError)
        tensors = {}
        for name, expected in index["files"].items():
            stem = name.removesuffix(".safetensors")
            if only and stem not in only:
                continue
            if Path(name).name != name:
                raise CheckpointError(f"{path / FACTS}: names a file outside of the folder")
            if sha256(path / name) != expected["sha256"]:
                raise CheckpointError(f"{path / name}: not the bytes that were written")
            tensors[stem] = load_file(path / name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path}: incomplete checkpoint ({_reason(error)})") from error
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


def newest(folder: Path, only: tuple[str, ...] = ()) -> Checkpoint | None:
    """The newest intact checkpoint under `folder`, or None; damaged ones are skipped with a warning."""
    for step in reversed(steps(folder)):
        try:
            return load(folder / f"step-{step:08d}", only)
        except CheckpointError as error:
            say(f"warning: {error}; trying the previous checkpoint")
    return None


def identity(folder: Path, step: int) -> str:
    """Short hash that identifies a checkpoint in result files: of its index, which holds all other hashes."""
    return (folder / f"step-{step:08d}" / DONE).read_bytes().strip().decode()[:16]


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors; used to verify frozen weights."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    files = {}
    for stem, tensors in checkpoint.tensors.items():
        path = folder / f"{stem}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        sync(path)
        files[path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    index = {"step": checkpoint.step, "facts": checkpoint.facts, "files": files}
    text = json.dumps(index, indent=1, sort_keys=True).encode()
    for name, content in ((FACTS, text), (DONE, hashlib.sha256(text).hexdigest().encode())):
        (folder / name).write_bytes(content)
        sync(folder / name)
    sync(folder)


def _remove(path: Path) -> None:
    """Delete a folder, after renaming it: a half-deleted one must never be taken for a checkpoint."""
    if path.exists():
        trash = path.with_name(f".deleting-{path.name.lstrip('.')}")
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
