"""What `mu synthesize` is asked for: which of its options go together, and how many images that makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medunifier_cli.files import text_lines
from medunifier_cli.options.shared import refuse

if TYPE_CHECKING:
    from medunifier_cli.cluster.options import JobOptions
    from medunifier_cli.evaluate.editing import Box

HELD_OUT = "the held-out split"
"""Stands for the split that `--reconstruct` takes if it is given none."""
OF_SAMPLING = {"seed", "temperature", "top_k", "top_p", "guidance", "best_of"}
"""Parameters that change what is sampled."""
DEFAULT_N = 16
"""Images synthesized when neither a number nor prompts are given."""


def own_films(files: tuple[Path, ...], reconstructed: str) -> list[Path]:
    """The image files that `--reconstruct` takes: the first one may be typed as its value."""
    first = [Path(reconstructed)] if reconstructed != HELD_OUT and Path(reconstructed).is_file() else []
    return [*first, *files] if reconstructed else []


def count_images(
    n: int | None, prompts: str, reconstructed: str, film: Path | None, name: str, data: str, split: str,
    files: tuple[Path, ...], dry_run: bool, **_: Any,
) -> int:  # fmt: skip
    """Images that several ranks can share; 0 for what one process does."""
    if dry_run or film is not None or own_films(files, reconstructed):
        return 0
    if n:
        return n
    if reconstructed:
        from medunifier_cli.evaluate.benchmark import count_samples

        of_split = split if reconstructed == HELD_OUT else reconstructed
        return count_samples(name, data, of_split)
    path = Path(prompts)
    return len(text_lines(path)) if prompts and path.is_file() else DEFAULT_N


def check_options(
    prompt: str, prompts: str, of_class: str, reconstructed: str, data: str, split: str, film: Path | None,
    box: Box | None, figure: str, files: tuple[Path, ...], dry_run: bool, sbatch: JobOptions | None, **_: Any,
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
    if reconstructed:
        refuse(OF_SAMPLING, "is for synthetic images, and --reconstruct makes none")
    if films or film is not None:
        refuse({"dry_run"}, "tells of many images, and image files are a few")
    if dry_run and sbatch:
        raise click.UsageError("--sbatch starts nothing, so there is nothing to try with --dry-run")
