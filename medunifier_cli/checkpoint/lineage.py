"""Which run was made from which: fine-tuned and fitted runs name the pre-training run they started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medunifier_cli.errors import CheckpointError, RecipeError
from medunifier_cli.recipe.load import load_any
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run


def recipe_of(run: Run) -> Any:
    """The recipe of a run, of whatever stage; None where it has none that can be read."""
    try:
        return load_any(run.recipe, saved=True) if run.recipe.exists() else None
    except RecipeError:
        return None


def base_of(run: Run) -> Run | None:
    """The pre-training run that a run was made from, itself where it is one; None where that one is gone."""
    recipe = recipe_of(run)
    if not isinstance(recipe, FinetuneRecipe | PriorRecipe):
        return run
    folder = _start(recipe)
    return None if folder is None else Run(folder)


def made_from(run: Run) -> list[Run]:
    """Runs beside this one whose recipe names it as their start, by name."""
    here = run.folder.resolve()
    found = []
    for folder in sorted(path for path in here.parent.iterdir() if path.is_dir()):
        recipe = recipe_of(Run(folder))
        if isinstance(recipe, FinetuneRecipe | PriorRecipe):
            start = _start(recipe)
            if start is not None and start.resolve() == here:
                found.append(Run(folder))
    return found


def _start(recipe: FinetuneRecipe | PriorRecipe) -> Path | None:
    name = recipe.model.pretrained if isinstance(recipe, FinetuneRecipe) else recipe.prior.pretrained
    try:
        return find_run(name) if name else None
    except CheckpointError:
        return None
