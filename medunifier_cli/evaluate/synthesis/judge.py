"""Judge images for `mu score --fake`: distances to real ones, copies of training images, prompt adherence."""

from __future__ import annotations

from dataclasses import dataclass

import click

from medunifier_cli.checkpoint.pretrained import run_for
from medunifier_cli.evaluate.results import table
from medunifier_cli.evaluate.synthesis.copies import find_copies, print_verdict
from medunifier_cli.evaluate.synthesis.frechet import open_scorer, score_images
from medunifier_cli.evaluate.synthesis.prompt_adherence import measure_adherence
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
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
    if options.real:
        metrics = score_images(
            scorer, options.real, options.fake, extractor=options.extractor, weights=options.inception,
            images=options.images, seed=options.seed, rad_dino=options.rad_dino,
        )  # fmt: skip
        show(table(metrics))
    if options.copies:
        verdict = find_copies(scorer, options.fake, options.real, options.heldout)
        show(table(verdict.metrics))
        print_verdict(verdict)
    if options.classifier:
        show(table(measure_adherence(scorer, options.fake, options.classifier)))
