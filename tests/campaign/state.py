"""What a call left behind: every file by a hash of what must be equal, and the differences of two folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py

from medunifier_cli.run.log import without_times

State = Mapping[str, str]
"""Path of a file relative to the folder -> hash of what must be equal in it."""

IGNORED = {".lock"}


def state_of(folder: Path) -> State:
    """The state of a folder with data, runs and samples."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in IGNORED and not path.name.startswith("lock-"):
            found[path.relative_to(folder).as_posix()] = _hash(path, folder)
        elif path.is_symlink() or (path.is_dir() and not any(path.iterdir())):
            found[path.relative_to(folder).as_posix() + "/"] = "empty"
    return found


def differences(calm: State, other: State) -> list[str]:
    """Files that differ, are missing or are left over; nothing where the folders are equal."""
    lines = []
    for name in sorted(calm.keys() | other.keys()):
        if name not in other:
            lines.append(f"{name} is missing")
        elif name not in calm:
            lines.append(f"{name} is left over")
        elif calm[name] != other[name]:
            lines.append(f"{name} differs")
    return lines


def _hash(path: Path, root: Path) -> str:
    try:
        content = READERS.get(path.name, READERS.get(path.suffix, _bytes))(path)
    except Exception as error:  # damaged: its bytes count
        return f"unreadable {type(error).__name__} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return hashlib.sha256(content.replace(str(root).encode(), b"HOME")).hexdigest()[:16]


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _log(path: Path) -> bytes:
    """All lines, less the time each step took."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    return json.dumps([without_times(line) for line in lines]).encode()


def _provenance(path: Path) -> bytes:
    """The data alone: every start adds itself."""
    return json.dumps(json.loads(path.read_bytes()).get("data"), sort_keys=True).encode()


def _arrays(path: Path) -> bytes:
    """Names, types and values: HDF5 may lay the same arrays out in several ways."""
    parts: list[Any] = []

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            value = item[()]
            parts.append(
                [name, str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
            )

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(add)
    return json.dumps(parts).encode()


READERS: dict[str, Callable[[Path], bytes]] = {
    "log.jsonl": _log,
    "provenance.json": _provenance,
    ".h5": _arrays,
    ".hdf5": _arrays,
}
