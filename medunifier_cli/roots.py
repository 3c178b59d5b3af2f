"""Find the folders of data and runs: the only module that reads `$MU_DATA` and `$MU_RUNS`."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from medunifier_cli.errors import CheckpointError, MuError
from medunifier_cli.terminal.say import say

NEEDS = {"synthesize": "fit-prior", "score": "retrieve", "predict": "finetune"}
"""Verb -> the verb whose output it reads; `pretrain` for all others."""

NAME_CHARACTERS, NAME_BYTES = 100, 200
"""Longest name of a run; file systems take 255 bytes, and `--fresh` and log files add to it."""


def data_root() -> Path:
    """`$MU_DATA`; by default `data/` in the current folder."""
    return Path(os.environ.get("MU_DATA") or "data")


def runs_root() -> Path:
    """`$MU_RUNS`; by default `runs/` in the current folder."""
    return Path(os.environ.get("MU_RUNS") or "runs")


def cache_root() -> Path:
    """Folder of what only saves time: `medunifier/` in `$XDG_CACHE_HOME`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "medunifier"


def check_run_name(name: str) -> str:
    """The name of a run that is to be trained: of a folder in `runs_root()`, and a word of a job script.

    Raises:
        MuError: it would lead elsewhere, add lines to a job script, or be taken for an option.
    """
    return check_name(name, "run", "MU_RUNS")


def check_name(name: str, what: str, root: str) -> str:
    """A name that is to become a folder.

    Args:
        what: it names, `run` or `data set`.
        root: variable that says where such folders are.

    Raises:
        MuError: see `check_run_name`.
    """
    advice = f"give the {what} another name with --name"
    if not name.strip() or name in (".", ".."):
        raise MuError(f"a {what} cannot be named {name!r}; {advice}")
    for separator in ("/", "\\"):
        if separator in name:
            raise MuError(
                f"{name!r}: the name of a {what} cannot contain {separator}; set {root} to choose the folder"
            )
    # control characters and line ends, invisible ones, halves of characters
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name):
        raise MuError(f"{name!r} has control characters, which no name of a {what} may have; {advice}")
    if name.startswith("-") or name != name.strip():
        raise MuError(f"{name!r} begins with a dash, or begins or ends with a blank; {advice}")
    if len(name) > NAME_CHARACTERS or len(name.encode()) > NAME_BYTES:
        raise MuError(
            f"the name of a {what} of {len(name)} characters is longer than {NAME_CHARACTERS} characters or "
            f"{NAME_BYTES} bytes; {advice}"
        )
    return name


def raw_folder(dataset: str) -> Path:
    """Folder in which the download of a data set is expected."""
    return data_root() / "raw" / dataset


def shards_folder(dataset: str) -> Path:
    """Folder of the shards of a data set, unless a command names another."""
    return data_root() / "shards" / dataset


def features_folder(dataset: str) -> Path:
    """Folder of the cached features of a data set's images, with a folder for each image encoder and size."""
    return data_root() / "features" / dataset


def prepared_names() -> list[str]:
    """The data sets that are prepared under `$MU_DATA`, by name."""
    return sorted(path.parent.name for path in shards_folder("").glob("*/manifest.json"))


def run_names() -> list[str]:
    """Names of the runs under `$MU_RUNS`, sorted: folders with a recipe or with checkpoints."""
    return sorted(path.name for path in _runs(runs_root()) if _is_run(path))


def find_run(name_or_path: str | Path, beside: Path | None = None) -> Path:
    """The folder of a run, given by name (a folder in `runs_root()`) or by path; a name takes precedence.

    Args:
        beside: folder of a run whose recipe gives this name. A run next to it comes first: both were trained
            in one folder, and may have been moved together to where `$MU_RUNS` does not point.

    Raises:
        CheckpointError: no such run; the message suggests the closest name.
    """
    if beside is not None and (beside.parent / name_or_path / "recipe.yaml").is_file():
        return beside.parent / name_or_path
    named, path = runs_root() / name_or_path, Path(name_or_path)
    if named.is_dir():
        return named
    # not any folder: beside one called `demo`, the run `demo` of another `$MU_RUNS` would not be missed
    if _is_run(path):
        return path
    names = sorted(path.name for path in _runs(runs_root()))
    nearest = difflib.get_close_matches(str(name_or_path), names, n=1)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"available: {', '.join(names) or 'none'}"
    raise CheckpointError(f"no run `{name_or_path}` under {runs_root()}/; {hint}")


def newest_run(fits: Callable[[Path], bool], verb: str, beside: Path | None = None) -> Path:
    """The most recently trained of the runs that a verb can use; its name is printed on stderr.

    Args:
        fits: whether a run folder has what the verb needs.
        verb: for the message; empty prints none.
        beside: folder of a run; those next to it count as well as those in `runs_root()`.

    Raises:
        CheckpointError: there is no such run.
    """
    others = [] if beside is None or beside.parent.resolve() == runs_root().resolve() else [beside.parent]
    candidates = [run for root in (runs_root(), *others) for run in _runs(root) if fits(run)]
    if not candidates:
        needed = NEEDS.get(verb, "pretrain")
        raise CheckpointError(
            f"no run found under {runs_root()}/ that fits `{verb}`: it needs `mu {needed}` first"
        )
    newest = max(candidates, key=lambda run: (last_trained(run), run.name))
    if verb:
        say(f"{verb} uses the newest run that fits: {newest}")
    return newest


def _runs(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() or (path / "checkpoints").is_dir()


def last_trained(run: Path) -> float:
    """Time at which training last wrote to the run, in seconds since the epoch."""
    # not the folder's own time, which results and caches of evaluation change as well
    written = [run / "log.jsonl", run / "checkpoints", run / "recipe.yaml"]
    return max(path.stat().st_mtime for path in [path for path in written if path.exists()] or [run])
