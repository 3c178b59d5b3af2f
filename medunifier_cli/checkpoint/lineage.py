"""Which run was derived from which: the recipe of fine-tuning or priors names the pre-training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunifier_cli.errors import CheckpointError, RecipeError
from medunifier_cli.recipe.load import load_any
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run
from medunifier_cli.run.state import identities


def recipe_of(run: Run) -> Any:
    """The recipe of a run of any stage; None where there is none that can be read."""
    try:
        return load_any(run.recipe, saved=True) if run.recipe.exists() else None
    except RecipeError:
        return None


def base_of(run: Run) -> Run | None:
    """The pre-training run that a run was derived from: itself if it is one; None if that run is gone."""
    recipe = recipe_of(run)
    if not isinstance(recipe, FinetuneRecipe | PriorRecipe):
        return run
    folder = _pretrained_folder(recipe, run)
    return None if folder is None else Run(folder)


def made_from(run: Run) -> list[Run]:
    """Runs in the same folder whose recipe names this one as the run they start from, by name."""
    here = run.folder.resolve()
    derived = []
    for folder in sorted(path for path in here.parent.iterdir() if path.is_dir()):
        recipe = recipe_of(Run(folder))
        if isinstance(recipe, FinetuneRecipe | PriorRecipe):
            start = _pretrained_folder(recipe, Run(folder))
            # Resolved, as recipes name a run by its name, a relative or an absolute path.
            if start is not None and start.resolve() == here:
                derived.append(Run(folder))
    return derived


def of_these_weights(run: Run, result: Mapping[str, Any]) -> bool:
    """Whether a result was derived from weights that the pre-training run `run` still holds.

    Not so after the run was trained again or further. True where the result or the run does not tell.
    """
    recorded, there = result.get("pretrained"), identities(run)
    name = recorded.get("hash") if isinstance(recorded, Mapping) else None
    return name is None or not there or name in there


def pretrained_of(recipe: FinetuneRecipe | PriorRecipe) -> str:
    """Name or folder of the pre-training run that a recipe names; empty for the newest."""
    return recipe.model.pretrained if isinstance(recipe, FinetuneRecipe) else recipe.prior.pretrained


def _pretrained_folder(recipe: FinetuneRecipe | PriorRecipe, run: Run) -> Path | None:
    name = pretrained_of(recipe)
    try:
        return find_run(name, run.folder) if name else None
    except CheckpointError:
        return None
