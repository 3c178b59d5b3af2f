"""Where data and runs lie: `$MU_DATA` and `$MU_RUNS`, read here and nowhere else."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import click

from medunifier_cli.errors import CheckpointError

MADE_BY = {"synthesize": "fit-prior", "score": "retrieve"}
"""Verb -> the verb that makes the run it needs; `pretrain` for all others."""


def data_root() -> Path:
    """`$MU_DATA`, by default `data/` where the user stands."""
    return Path(os.environ.get("MU_DATA") or "data")


def runs_root() -> Path:
    """`$MU_RUNS`, by default `runs/` where the user stands."""
    return Path(os.environ.get("MU_RUNS") or "runs")


def raw_folder(dataset: str) -> Path:
    """Where the download of a data set is looked for."""
    return data_root() / "raw" / dataset


def shards_folder(dataset: str) -> Path:
    """Where the shards of a data set are written and looked for."""
    return data_root() / "shards" / dataset


def find_run(name_or_path: str | Path) -> Path:
    """The folder of a run: a path, or a name under `runs_root()`. The name wins.

    Raises:
        CheckpointError: there is neither; names the nearest run.
    """
    named = runs_root() / name_or_path
    for folder in (named, Path(name_or_path)):
        if folder.is_dir():
            return folder
    names = sorted(path.name for path in _runs())
    nearest = difflib.get_close_matches(str(name_or_path), names, n=1)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"there are: {', '.join(names) or 'none'}"
    raise CheckpointError(f"no run `{name_or_path}` under {runs_root()}/; {hint}")


def newest_run(fits: Callable[[Path], bool], verb: str) -> Path:
    """The run that was trained last among those that fit, said on stderr.

    Args:
        fits: whether a run folder has what the verb needs.
        verb: for the message.

    Raises:
        CheckpointError: no run fits.
    """
    fitting = [run for run in _runs() if fits(run)]
    if not fitting:
        needed = MADE_BY.get(verb, "pretrain")
        raise CheckpointError(
            f"no run found under {runs_root()}/ that fits `{verb}`: it needs `mu {needed}` first"
        )
    newest = max(fitting, key=lambda run: (_last_trained(run), run.name))
    click.echo(f"mu: {verb} takes the newest run that fits: {newest}", err=True)
    return newest


def _runs() -> list[Path]:
    root = runs_root()
    return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def _last_trained(run: Path) -> float:
    """Time of the last sign of training, in seconds; writing results into a run does not make it newer."""
    signs = [path for path in (run / "log.jsonl", run / "checkpoints", run / "recipe.yaml") if path.exists()]
    return max(path.stat().st_mtime for path in signs or [run])
