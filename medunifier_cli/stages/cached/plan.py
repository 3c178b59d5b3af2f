"""Which features of a frozen image encoder a recipe can read from a cache: where, and how large they are."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medunifier_cli.checkpoint.encoder.features import facts_of, folder_of
from medunifier_cli.checkpoint.pretrained import starting_run
from medunifier_cli.checkpoint.priors import splits_of
from medunifier_cli.checkpoint.run_tokenizer import split_folder
from medunifier_cli.data.cached_features import FeatureFacts
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.subset import open_part
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema import LIVE, PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run, shards_folder
from medunifier_cli.run.record import Run

AnyRecipe = PretrainRecipe | FinetuneRecipe | PriorRecipe
MB, GB = 1e6, 1e9
UNKNOWN = "0" * 64
"""In place of the hash of weights, where only sizes are asked for."""


@dataclass(frozen=True)
class FeaturePlan:
    """The features that a recipe reads."""

    encoder: PretrainRecipe
    """Of pre-training: its image encoder, its seed, and the size of its images."""
    folder: Path
    """Where they are, or will be."""
    shards: Mapping[str, Shards]
    """The splits by name, in the order in which they are computed."""
    workers: int
    """Loader processes per rank."""
    dataset: str
    setting: str
    """`data.features`: whether the recipe reads them."""


def plan_features(recipe: AnyRecipe, out: Path | None = None) -> FeaturePlan:
    """Plan the features of all splits that a recipe names.

    Args:
        recipe: of any stage; one of `mu finetune` or `mu fit-prior` takes the encoder of the run that it
            starts from.
        out: folder for them; None for what the recipe says.

    Raises:
        MuError: the encoder is trained, there is no such run, or a split is missing.
    """
    if isinstance(recipe, PretrainRecipe):
        data = recipe.data
        encoder, dataset, folder = recipe, data.dataset, split_folder(recipe)
        names, setting, workers = (data.train, data.valid, data.test), data.features, data.workers
    elif isinstance(recipe, FinetuneRecipe):
        encoder, own = _encoder_of(recipe.model.pretrained, recipe.stage), recipe.data
        dataset, folder = own.dataset, Path(own.shards) if own.shards else shards_folder(own.dataset)
        names, setting, workers = (own.train, own.valid, own.test), own.features, own.workers
    else:
        encoder, prior = _encoder_of(recipe.prior.pretrained, recipe.stage), recipe.data
        dataset = prior.dataset or encoder.data.dataset
        folder, train, valid = splits_of(recipe, encoder)
        names, workers = (train, valid, ""), encoder.data.workers
        setting = prior.features or (encoder.data.features if dataset == encoder.data.dataset else LIVE)
    if not encoder.model.vit.frozen:
        raise MuError(
            "model.vit.frozen: false, so the image encoder is trained and its features change; there is "
            "nothing to cache"
        )
    shards = {name: open_part(folder, name) for name in dict.fromkeys(filter(None, names))}
    folder = out or folder_of(setting, dataset, encoder)
    return FeaturePlan(encoder, folder, shards, workers, dataset, setting)


def _encoder_of(pretrained: str, verb: str) -> PretrainRecipe:
    return load_saved(Run(find_run(starting_run(pretrained, verb))).recipe, PretrainRecipe)


def sizes_of(plan: FeaturePlan) -> dict[str, FeatureFacts]:
    """What the features of each split depend on but for the weights, which sizes do not.

    Raises:
        MuError: timm knows no such encoder.
    """
    vit = plan.encoder.model.vit
    with torch.device("meta"):
        encoder = ImageEncoder(vit, plan.encoder.data.image_size, load=False)
    return {split: facts_of(plan.encoder, encoder, UNKNOWN, shards) for split, shards in plan.shards.items()}


def describe(sizes: Mapping[str, FeatureFacts]) -> str:
    """How much room features take, in words."""
    first = next(iter(sizes.values()))
    count = sum(facts.samples for facts in sizes.values())
    return (
        f"{count:,} images x {first.tokens} x {first.width:,} in bf16, "
        f"{room(sum(facts.total_bytes for facts in sizes.values()))}"
    )


def room(size: int) -> str:
    """Bytes in words: `176.1 GB`, `1.2 MB`."""
    return f"{size / GB:,.1f} GB" if size >= GB else f"{size / MB:.1f} MB"


def refuse_small_disk(folder: Path, needed: int) -> int:
    """Refuse a disk with less room than is needed; returns the bytes that are free.

    Raises:
        DataError: it has less.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"{folder}: {room(needed)} more are needed, and {room(free)} are free there; name a folder on "
            "another disk with --out"
        )
    return free


def with_weights(sizes: Mapping[str, FeatureFacts], weights: str) -> dict[str, FeatureFacts]:
    """The facts of `sizes_of` with the hash of the weights."""
    return {split: dataclasses.replace(facts, encoder=weights) for split, facts in sizes.items()}
