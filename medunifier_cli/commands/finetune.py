"""`mu finetune RECIPE`."""

from __future__ import annotations

from typing import Any

import click

from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.stages.start import StartOptions, training_options


@click.command()
@training_options
@click.option("--from", "started_from", default="", help="Pre-training run; by default the newest.")
def finetune(recipe: str, started_from: str, **options: Any) -> None:
    """Fine-tune a pre-trained model for classification; goes on where an earlier call stopped.

    RECIPE is a YAML file or the name of a shipped one, such as `finetune-rsna`. The run is named after the
    recipe and the fraction. The best epoch by the validation split is kept, and measured once on the
    held-out split.
    """
    asked = StartOptions(**options)
    loaded = load_recipe(recipe, asked.overrides, FinetuneRecipe)
    from medunifier_cli.checkpoint.pretrained import fill_pretrained
    from medunifier_cli.stages.finetune import run_finetuning

    asked.start(
        run_finetuning, loaded, f"{loaded.name}-{loaded.data.fraction:g}", loaded.data.workers,
        complete=lambda found, folder: fill_pretrained(found, started_from, folder),
    )  # fmt: skip
