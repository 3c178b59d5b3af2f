"""`mu pretrain RECIPE`."""

from __future__ import annotations

from typing import Any

import click

from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.stages.start import StartOptions, training_options


@click.command()
@training_options
def pretrain(recipe: str, **options: Any) -> None:
    """Pre-train MedUnifier on prepared shards; resumes from the last checkpoint.

    RECIPE is a YAML file or the name of a shipped one, such as `full` or `demo`.
    """
    start = StartOptions(**options)
    loaded = load_recipe(recipe, start.overrides, PretrainRecipe)
    from medunifier_cli.stages.pretrain import run_pretraining

    start.start(run_pretraining, loaded, loaded.name, loaded.data.workers)
