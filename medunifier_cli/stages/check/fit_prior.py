"""Check that everything a recipe of `mu fit-prior` needs is in place, without a network."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from medunifier_cli.checkpoint.priors import splits_of
from medunifier_cli.evaluate.synthesis.inception import load_inception
from medunifier_cli.recipe.schema import LIVE
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.stages.check.shared import (
    Check,
    check_batch,
    check_device,
    check_features,
    check_image_encoder,
    check_runs_folder,
    check_split,
    check_starting_run,
    run_check,
)
from medunifier_cli.stages.codes import check_codes


def check_fit_prior(recipe: PriorRecipe, processes: int = 0, hashes: bool = False) -> Iterator[Check]:
    """Check everything the recipe needs, in the order a run would need it; downloads and encodes nothing.

    Args:
        processes: ranks; 0 for the recipe's number.
        hashes: read every shard and compare its SHA-256.
    """
    checks, pretrained = check_starting_run(recipe.prior.pretrained, "fit-prior", require=check_codes)
    yield from checks
    if pretrained is not None:
        yield from run_check("image encoder weights", check_image_encoder, pretrained)
        folder, *splits = splits_of(recipe, pretrained)
        for split in filter(None, splits):
            yield from run_check(f"shards of {split}", check_split, folder, split, hashes)
        if recipe.data.features not in ("", LIVE):
            yield from run_check("cached features", check_features, recipe, hashes)
    if recipe.inception:
        yield from run_check("Inception weights", check_inception, recipe.inception)
    yield from run_check("batch", check_batch, recipe.train, processes or recipe.train.processes, "maps")
    yield from run_check("precision", check_device, recipe.train)
    yield from run_check("runs folder", check_runs_folder)


def check_inception(weights: str) -> str:
    """Check that the file of Inception weights is there and loads."""
    load_inception(weights, torch.device("cpu"))
    return weights
