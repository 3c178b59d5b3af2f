"""`mu fit-prior RECIPE`."""

from __future__ import annotations

from typing import Any

import click

from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.stages.start import StartOptions, training_options


@click.command()
@training_options
@click.option("--from", "started_from", default="", help="Pre-training run; by default the newest.")
def fit_prior(recipe: str, started_from: str, **options: Any) -> None:
    """Encode a split to codes, then fit the top and the bottom prior; goes on where an earlier call stopped.

    RECIPE is a YAML file or the name of a shipped one, such as `prior` or `prior-demo`.
    """
    asked = StartOptions(**options)
    loaded = load_recipe(recipe, asked.overrides, PriorRecipe)
    from medunifier_cli.checkpoint.pretrained import fill_pretrained
    from medunifier_cli.stages.fit_prior import run_fitting

    asked.start(
        run_fitting, loaded, loaded.name,
        complete=lambda found, folder: fill_pretrained(found, started_from, folder),
    )  # fmt: skip
