"""What `mu synthesize` is asked for: which of its options go together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medunifier_cli.options.shared import refuse

if TYPE_CHECKING:
    from medunifier_cli.cluster.options import JobOptions

HELD_OUT = "the held-out split"
"""Stands for the split that `--reconstruct` takes if it is given none."""
OF_SAMPLING = {"seed", "temperature", "top_k", "top_p", "guidance", "best_of"}
"""Parameters that change what is sampled."""


def own_films(files: tuple[Path, ...], reconstructed: str) -> list[Path]:
    """The image files that `--reconstruct` takes: the first one may be typed as its value.

    Beside other files, or with a folder or an ending in its name, it is a file whether it is there or not.
    """
    if reconstructed in ("", HELD_OUT):
        return list(files) if reconstructed else []
    path = Path(reconstructed)
    a_file = files or path.is_file() or path.suffix or len(path.parts) > 1
    return [path, *files] if a_file else []


def check_options(
    prompt: str, prompts: str, of_class: str, reconstructed: str, data: str, split: str, film: Path | None,
    box: object, figure: str, files: tuple[Path, ...], dry_run: bool, sbatch: JobOptions | None, **_: Any,
) -> None:  # fmt: skip
    """Raise click.UsageError for options that do not go together, or that have no effect."""
    films = own_films(files, reconstructed)
    if files and not reconstructed:
        raise click.UsageError("image files are for --reconstruct; add it")
    if films:
        refuse({"n", "data", "split"}, "is for a split, and image files are all reconstructed")
        refuse({"num_processes"}, "shares the work of many images, and image files are a few")
    else:
        refuse({"likeness"}, "is for image files with --reconstruct")
    if sum(map(bool, (prompt and not films, prompts, reconstructed))) > 1:
        raise click.UsageError("--prompt, --prompts and --reconstruct exclude each other")
    if reconstructed and of_class:
        raise click.UsageError("--class requests synthetic images, and --reconstruct makes none")
    if reconstructed and figure:
        raise click.UsageError("--figure shows synthetic images, and --reconstruct makes none; leave one out")
    if (data or split) and not reconstructed:
        raise click.UsageError("--data and --split say what --reconstruct takes; add it")
    if split and reconstructed not in (HELD_OUT, split):
        raise click.UsageError(f"--reconstruct {reconstructed} and --split {split} are two splits; name one")
    if film is None and box is not None:
        raise click.UsageError("--box says what --edit draws anew; add it")
    if film is not None and reconstructed:
        raise click.UsageError("--edit draws an image anew and --reconstruct draws none; leave one out")
    if film is not None and (not prompt or figure):
        raise click.UsageError("--edit needs --prompt, and has a sheet of its own in place of --figure")
    if film is not None:
        refuse({"best_of"}, "is not for --edit, which shows every edit that it draws")
        refuse({"num_processes"}, "shares the work of many images, and --edit draws them one by one")
        refuse({"batch", "old_batch"}, "is for many images, and --edit draws them one by one")
    if reconstructed:
        refuse(OF_SAMPLING, "is for synthetic images, and --reconstruct makes none")
    if films or film is not None:
        refuse({"dry_run"}, "tells of many images, and image files are a few")
    if dry_run and sbatch:
        raise click.UsageError("--sbatch starts nothing, so there is nothing to try with --dry-run")
