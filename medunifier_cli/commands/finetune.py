"""`mu finetune RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medunifier_cli.options.training import starting_run_options, used_and_made
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.stages.start import StartOptions, training_options


@click.command()
@training_options
@starting_run_options
def finetune(recipe: str, used: str, old_from: str, **options: Any) -> None:
    """Fine-tune a pre-trained model for classification; resumes from the last checkpoint.

    RECIPE is a YAML file or the name of a shipped one, such as `finetune-rsna`. The run is named after the
    recipe, the fraction of the training data and the data sets of data.extra. The epoch that scores best on
    the validation split is kept, and measured once on the held-out split.
    """
    pretrained, options["name"] = used_and_made(used, old_from, options["name"])
    start = StartOptions(**options)
    loaded = load_recipe(recipe, start.overrides, FinetuneRecipe)
    from medunifier_cli.checkpoint.pretrained import fill_pretrained
    from medunifier_cli.stages.finetune import run_finetuning

    def fill_in(recipe: FinetuneRecipe, folder: Path) -> FinetuneRecipe:
        return fill_pretrained(recipe, pretrained, folder)

    name = "-".join((loaded.name, f"{loaded.data.fraction:g}", *loaded.data.extra))
    start.start(run_finetuning, loaded, name, loaded.data.workers, fill_in)
