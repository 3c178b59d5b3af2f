"""`mu fit-prior RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medunifier_cli.options.shared import data_option
from medunifier_cli.options.training import starting_run_options, used_and_made
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.stages.start import StartOptions, training_options

ENCODING_WORKERS = 2
"""Loader processes that a job has room for: images are encoded with those of the pre-training recipe."""


@click.command()
@training_options
@starting_run_options
@data_option(
    "Prepared data set whose codes are modelled (data.dataset; default: that of the pre-training run).",
    "data",
)
def fit_prior(recipe: str, used: str, old_from: str, data: str, **options: Any) -> None:
    """Encode a split to codes and fit the top and bottom priors; resumes from the last checkpoint.

    RECIPE is a YAML file or the name of a shipped one, such as `prior` or `prior-demo`.
    """
    if data:  # another way to write the recipe's key, so that the run keeps it
        options["overrides"] = (*options["overrides"], f"data.dataset={data}")
    pretrained, options["name"] = used_and_made(used, old_from, options["name"])
    start = StartOptions(**options)
    loaded = load_recipe(recipe, start.overrides, PriorRecipe)
    from medunifier_cli.checkpoint.pretrained import fill_pretrained
    from medunifier_cli.stages.fit_prior import run_fitting

    def fill_in(recipe: PriorRecipe, folder: Path) -> PriorRecipe:
        return fill_pretrained(recipe, pretrained, folder)

    start.start(run_fitting, loaded, loaded.name, ENCODING_WORKERS, fill_in)
