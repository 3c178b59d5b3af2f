"""What `mu score` does with images: `--real/--fake`, `--copies` and `--classifier`, in that order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from medunifier_cli.checkpoint.pretrained import is_pretrained
from medunifier_cli.checkpoint.priors import is_fitted
from medunifier_cli.evaluate.results import table
from medunifier_cli.roots import find_run, newest_run
from medunifier_cli.run.record import Run


@dataclass(frozen=True)
class Wanted:
    """The options as typed."""

    run: str
    fake: str
    real: str
    copies: bool
    heldout: str
    classifier: str
    extractor: str
    inception: str
    images: int
    seed: int


def judge_images(wanted: Wanted) -> None:
    """Print a table for each thing asked, and say on stderr whether copies are suspected.

    Raises:
        click.UsageError: nothing to compare the images with.
        MuError: anything the user must mend.
    """
    if not (wanted.real or wanted.copies or wanted.classifier):
        raise click.UsageError("--fake needs --real, --copies or --classifier")
    from medunifier_cli.evaluate.synthesis.copies import find_copies, say
    from medunifier_cli.evaluate.synthesis.frechet import open_scorer, score_images

    scorer = open_scorer(_run(wanted.run))
    if wanted.real:
        metrics = score_images(
            scorer, wanted.real, wanted.fake, extractor=wanted.extractor, weights=wanted.inception,
            images=wanted.images, seed=wanted.seed,
        )  # fmt: skip
        click.echo(table(metrics))
    if wanted.copies:
        verdict = find_copies(scorer, wanted.fake, wanted.real, wanted.heldout)
        click.echo(table(verdict.metrics))
        say(verdict)
    if wanted.classifier:
        from medunifier_cli.evaluate.synthesis.prompt_adherence import prompts_obeyed

        click.echo(table(prompts_obeyed(scorer, wanted.fake, wanted.classifier)))


def _run(name: str) -> Path:
    def fits(path: Path) -> bool:
        return is_pretrained(Run(path)) or is_fitted(Run(path))

    return find_run(name) if name else newest_run(fits, "score --fake")
