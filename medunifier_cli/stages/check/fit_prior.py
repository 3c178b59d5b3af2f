"""Check that everything a recipe of `mu fit-prior` needs is in place, without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch

from medunifier_cli.checkpoint.priors import splits_of
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.token_table import sections_there, texts_of
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.synthesis.inception import load_inception
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.schema import LIVE, PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.stages.check.pretrain import TEXTS_READ
from medunifier_cli.stages.check.shared import (
    Check,
    check_batch,
    check_device,
    check_features,
    check_run_encoder,
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
        yield from run_check("image encoder weights", check_run_encoder, pretrained)
        folder, *splits = splits_of(recipe, pretrained)
        for split in filter(None, splits):
            yield from run_check(f"shards of {split}", check_split, folder, split, hashes)
        if recipe.prior.condition == "text" and folder.is_dir():
            wanted = tuple(filter(None, splits))
            yield from run_check("texts", check_condition, recipe, pretrained, folder, wanted)
        if recipe.data.features not in ("", LIVE):
            yield from run_check("cached features", check_features, recipe, hashes)
    if recipe.inception:
        yield from run_check("Inception weights", check_inception, recipe.inception)
    yield from run_check("batch", check_batch, recipe.train, processes or recipe.train.processes, "maps")
    yield from run_check("precision", check_device, recipe.train)
    yield from run_check("runs folder", check_runs_folder)


def check_condition(
    recipe: PriorRecipe, pretrained: PretrainRecipe, folder: Path, splits: Sequence[str]
) -> str:
    """Check that each split has what priors are conditioned on: texts, or classes that have prompts.

    Counts the first `TEXTS_READ` samples of a split.

    Raises:
        DataError: a split has neither.
    """
    name, own = recipe.data.dataset or pretrained.data.dataset, pretrained.data
    plugin = prepared_dataset(name, str(folder))
    sections = (own.sections if name == own.dataset else ()) or plugin.text_sections
    told = []
    for split in splits:
        with closing(Shards.open(folder, split)) as shards:
            looked_at = min(TEXTS_READ, len(shards))
            texts = texts_of(shards, sections, own, pretrained.text)
            count, what = sum(map(bool, islice(texts, looked_at))), "with text"
            if not count and any(texts):  # the first ones may be the exception
                what = "with text, and some later ones"
            elif not count and plugin.prompt_sets():
                looked_at, what = len(shards), "with a prompt of their class"
                count = int((shards.class_indices(plugin) >= 0).sum())
            if not count and "later" not in what:
                raise DataError(
                    f"{folder}: split {split!r} has no text in {', '.join(sections)} and no class with "
                    f"prompts, sections there: {sections_there(shards)}; prior.condition is text, and "
                    "`-o prior.condition=none` fits priors without"
                )
            told.append(f"{split} {count:,} of {looked_at:,} {what}")
    return ", ".join(told)


def check_inception(weights: str) -> str:
    """Check that the file of Inception weights is there and loads."""
    load_inception(weights, torch.device("cpu"))
    return weights
