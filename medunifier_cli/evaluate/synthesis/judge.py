"""Judge images for `mu score --fake`: distances to real ones, copies of training images, prompt adherence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from medunifier_cli.checkpoint.pretrained import run_for
from medunifier_cli.evaluate.results import Metric, table, tables
from medunifier_cli.evaluate.synthesis.copies import find_copies, print_verdict
from medunifier_cli.evaluate.synthesis.frechet import open_scorer, score_images
from medunifier_cli.evaluate.synthesis.prompt_adherence import measure_adherence, open_asked
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import show


@dataclass(frozen=True)
class ImageOptions:
    """Options of `mu score --fake`, as typed."""

    fake: str
    """Images to judge, a folder or a split."""
    run: str = ""
    """Name or folder of a pre-training run or a run of priors; empty for the newest."""
    real: str = ""
    """Real images to compare with, a folder or a split; empty to compute no distances."""
    copies: bool = False
    """Look for copies of training images."""
    heldout: str = ""
    """Split of unseen images for `copies`; empty for the run's held-out one."""
    classifier: str = ""
    """Run of `mu finetune` that judges prompt adherence; empty for none."""
    extractor: str = "auto"
    """`auto`, `encoder`, `inception`, `both`, `rad-dino` or `all`."""
    inception: str = ""
    """File of Inception weights; empty for the one in the priors' recipe."""
    rad_dino: str = ""
    """Folder or hub name of RAD-DINO; empty for the published one in the local cache."""
    images: int = 0
    """Judge a random subset of N images; 0 for all."""
    seed: int = 0
    """Of the subset and of the distances' intervals."""


def judge_images(options: ImageOptions) -> None:
    """Print a table for each thing that the options ask for, and the verdict on copies on stderr.

    Raises:
        click.UsageError: nothing to compare the images with.
        MuError: anything the user must fix.
    """
    if not (options.real or options.copies or options.classifier):
        raise click.UsageError("--fake needs --real, --copies or --classifier")
    scorer = open_scorer(run_for(options.run, "score --fake", PretrainRecipe, PriorRecipe))
    # before any image is read: a class that nobody knows must not cost the time of the distances
    asked = open_asked(options.fake, options.classifier) if options.classifier else None
    measured: dict[str, Sequence[Metric]] = {}
    if options.real:
        measured["distances"] = score_images(
            scorer, options.real, options.fake, extractor=options.extractor, weights=options.inception,
            images=options.images, seed=options.seed, rad_dino=options.rad_dino,
        )  # fmt: skip
        _show_at_once(measured["distances"])
    if options.copies:
        verdict = find_copies(scorer, options.fake, options.heldout)
        measured["copies"] = verdict.metrics
        _show_at_once(verdict.metrics)
        print_verdict(verdict)
    if asked is not None:
        measured["class asked for"] = measure_adherence(scorer, asked)
        _show_at_once(measured["class asked for"])
    if form() != "text":
        show(tables(measured))


def _show_at_once(metrics: Sequence[Metric]) -> None:
    """Print one table as soon as it is there, for a person: the next may take minutes."""
    if form() == "text":
        show(table(metrics))
