"""Names of the files in a prepared folder, the settings it was made with, and the locks on it.

Next to the shards `<split>-<nnnnnn>.tar` and `manifest.json`, which `data.shards` defines as it reads them:

    <split>.index.npy       index of a split, memory-mapped by the loader
    sheet-<split>.png       contact sheet
    rejects.jsonl           rows and images left out, and why
    rescaled.jsonl          images kept whose grey levels could not be meant, and why; absent if there is none
    .progress/              everything a restart needs:
        settings.json           what the shards depend on
        drops.jsonl             rows left out by the plugin
        <split>-<nnnnnn>.json   receipt of a finished shard
        lock-*                  locks of the running parts, and of the part that writes the manifest
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medunifier_cli.data.disk.manifest import MANIFEST
from medunifier_cli.errors import DataError
from medunifier_cli.files import explained, open_lock, readers_of, write_json
from medunifier_cli.parsing import read_json
from medunifier_cli.roots import shards_folder
from medunifier_cli.terminal.say import say

REJECTS = "rejects.jsonl"
RESCALED = "rescaled.jsonl"
INDEX = ".index.npy"
"""Ending of a split's index."""
RECEIPTS = ".progress"
"""Folder with one small file per finished shard, from which a restart resumes."""
LOCK = re.compile(r"lock-([0-9]{1,9})of([0-9]{1,9})")
"""Lock of part I of N, in the folder of receipts."""
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


def make_receipts_folder(out: Path, raw: Path | None) -> None:
    """Make the folder of receipts, and `out` above it, which is no more readable than the raw data.

    Args:
        out: all that is made of the raw data is in this folder.
        raw: the raw data; None where there are none.

    Raises:
        DataError: it cannot be made, or is a link, which would lead all that is written there elsewhere.
    """
    with explained(out / RECEIPTS):
        is_new = not out.exists()
        (out / RECEIPTS).mkdir(parents=True, exist_ok=True)
        if is_new and raw is not None and raw.exists():
            out.chmod(stat.S_IMODE(out.stat().st_mode) & readers_of(raw, out))
    if (out / RECEIPTS).is_symlink():
        raise DataError(f"{out / RECEIPTS}: is a link, which `mu prepare` does not follow; delete it")


def check_settings(
    out: Path, part: tuple[int, int], settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Refuse to mix shards that were made with different settings; a folder without shards takes any.

    Args:
        settings: all that the contents of the shards depend on.
        defaults: of the data set's options; one that a later version added had its default before.

    Raises:
        DataError: the folder has shards made with others, or not made by `mu prepare`.
    """
    path = out / RECEIPTS / SETTINGS
    # through JSON, so that tuples and numbers compare as they are read back
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        foreign = sorted(out.glob("*.tar"))
        if foreign:
            raise DataError(f"{out}: holds {foreign[0].name}, not made by `mu prepare`; choose another --out")
        write_json(path, settings)
        return
    known = {f"options.{name}": value for name, value in defaults.items()}
    before = known | _flat(read_json(path, dict[str, Any], DataError, f"delete {out} and run again"))
    changes = [
        f"{name}: was {before.get(name, 'not set')!r}, is {value!r}"
        for name, value in _flat(settings).items()
        if name not in before or before[name] != value
    ]
    # calls for a part may be at work on theirs
    if changes and part == (1, 1) and not any(out.glob("*.tar")):
        # nothing was made, for a wrong column say; the receipts that there are tell of rejected images alone
        for receipt in (out / RECEIPTS).glob("*-*.json"):
            with explained(receipt):
                receipt.unlink()
        write_json(path, settings)
    elif changes:
        begun = "made" if (out / MANIFEST).exists() else "started"
        # the folder of a name: another name makes another folder
        is_named = out == shards_folder(str(settings.get("dataset")))
        raise DataError(
            f"{out}: was {begun} with other settings ({'; '.join(changes)}); "
            f"choose another {'--name or --out' if is_named else '--out'}, or delete it"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting under its own name, `options.seed`, so that a message names the ones that differ alone."""
    flat = {}
    for name, value in settings.items():
        below = _flat(value) if isinstance(value, dict) else None
        flat.update({f"{name}.{key}": one for key, one in below.items()} if below else {name: value})
    return flat


@contextlib.contextmanager
def locked(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """One call per part at a time, and parts of one division only, unless the file system has no locks.

    Raises:
        DataError: another call works on the folder.
    """
    own = out / RECEIPTS / f"lock-{part[0]}of{part[1]}"
    with open_lock(own) as file:
        try:
            # Not flock: forked workers inherit it, and would hold it a moment longer than a killed parent.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise DataError(f"{out}: another `mu prepare` is running on it; wait until it ends") from error
        except OSError as error:
            say(
                f"{out}: the file system has no locks ({error.strerror}); see to it that no other "
                "`mu prepare` works on it"
            )
        _refuse_another_division(out, part)
        yield


def _refuse_another_division(out: Path, part: tuple[int, int]) -> None:
    """Refuse to work beside a call that divides the shards in another way: both would write the same ones."""
    for path in sorted((out / RECEIPTS).glob("lock-*of*")):
        match = LOCK.fullmatch(path.name)
        if match is None or int(match[2]) == part[1] or path.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError), open_lock(path) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back when the file is closed
            except (BlockingIOError, PermissionError) as error:
                other = f"--part {match[1]}/{match[2]}" if match[2] != "1" else "the whole of it"
                own = f"--part {part[0]}/{part[1]}" if part[1] > 1 else "the whole"
                raise DataError(
                    f"{out}: another `mu prepare` is making {other}, beside which {own} cannot be made; wait "
                    "until it ends"
                ) from error
            except OSError:  # no locks, as has been said
                return


@contextlib.contextmanager
def join_lock(out: Path) -> Iterator[None]:
    """Held while the manifest is written: two parts may finish the last shards at the same time."""
    with open_lock(out / RECEIPTS / "lock-join") as file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
