"""What a recipe of `mu fit-prior` needs; looks, and encodes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from medunifier_cli.checkpoint.pretrained import starting_run
from medunifier_cli.evaluate.synthesis.inception import load_inception
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run, shards_folder
from medunifier_cli.run.record import Run
from medunifier_cli.stages.check.pretrain import (
    Finding,
    each,
    look_at_batch,
    look_at_runs,
    look_at_split,
    look_at_vit,
)
from medunifier_cli.stages.fit_prior import check_codes


def look_at_priors(recipe: PriorRecipe, processes: int = 0, hashes: bool = False) -> Iterator[Finding]:
    """Look at everything the recipe needs, in the order a run would need it.

    Args:
        processes: ranks; 0 for what the recipe says.
        hashes: read every shard and compare its SHA-256.
    """
    started_from: list[PretrainRecipe] = []
    yield from each("pre-trained run", lambda: _pretrained(recipe, started_from))
    for found in started_from:
        data = found.data
        folder = Path(data.shards) if data.shards else shards_folder(data.dataset)
        yield from each("image encoder weights", lambda found=found: look_at_vit(found))  # type: ignore[misc]
        for split in filter(None, (recipe.data.train or data.train, recipe.data.valid or data.valid)):
            yield from each(f"shards of {split}", lambda s=split, f=folder: look_at_split(f, s, hashes))  # type: ignore[misc]
    if recipe.inception:
        yield from each("Inception weights", lambda: _inception(recipe.inception))
    yield from each(
        "batch", lambda: look_at_batch(recipe.train, processes or recipe.train.processes, "maps")[0]
    )
    yield from each("runs folder", look_at_runs)


def _pretrained(recipe: PriorRecipe, found: list[PretrainRecipe]) -> str:
    run = Run(find_run(starting_run(recipe.prior.pretrained, "fit-prior")))
    theirs = load_saved(run.recipe, PretrainRecipe)
    check_codes(theirs, run.folder)
    found.append(theirs)
    return f"{run.folder}, trained on {theirs.data.dataset}"


def _inception(weights: str) -> str:
    load_inception(weights, torch.device("cpu"))
    return weights
