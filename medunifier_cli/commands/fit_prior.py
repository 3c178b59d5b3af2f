"""`mu fit-prior RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.stages.start import StartOptions, training_options

ENCODING_WORKERS = 2
"""Loader processes that a job has room for: images are encoded with those of the pre-training recipe."""


@click.command()
@training_options
@click.option("--from", "pretrained", default="", help="Pre-training run to start from (default: newest).")
@click.option(
    "--data", default="", metavar="NAME",
    help="Prepared data set whose codes are modelled (data.dataset; default: that of the pre-training run).",
)  # fmt: skip
def fit_prior(recipe: str, pretrained: str, data: str, **options: Any) -> None:
    """Encode a split to codes and fit the top and bottom priors; resumes from the last checkpoint.

    RECIPE is a YAML file or the name of a shipped one, such as `prior` or `prior-demo`.
    """
    if data:  # another way to write the recipe's key, so that the run keeps it
        options["overrides"] = (*options["overrides"], f"data.dataset={data}")
    start = StartOptions(**options)
    loaded = load_recipe(recipe, start.overrides, PriorRecipe)
    from medunifier_cli.checkpoint.pretrained import fill_pretrained
    from medunifier_cli.stages.fit_prior import run_fitting

    def fill_in(recipe: PriorRecipe, folder: Path) -> PriorRecipe:
        return fill_pretrained(recipe, pretrained, folder)

    start.start(run_fitting, loaded, loaded.name, ENCODING_WORKERS, fill_in)
