"""Find the cached features of a frozen image encoder that a recipe names, and refuse those of another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunifier_cli.data.cached_features import (
    OTHERWISE,
    FeatureFacts,
    SplitFeatures,
    check_facts,
    facts_path,
)
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import MuError
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.recipe.schema import CACHED, LIVE, PretrainRecipe
from medunifier_cli.roots import features_folder

FACT = "features"
"""Name of what the provenance of a start says of the features that it read."""


def folder_of(setting: str, dataset: str, recipe: PretrainRecipe) -> Path:
    """The folder of cached features.

    Args:
        setting: `data.features` of a recipe of any stage.
        dataset: name of the data set.
        recipe: of pre-training, with the image encoder and the size of its images.
    """
    if setting in (LIVE, CACHED):
        return features_folder(dataset) / f"{recipe.model.vit.name}-{recipe.data.image_size}"
    return Path(setting)


def facts_of(recipe: PretrainRecipe, encoder: ImageEncoder, weights: str, shards: Shards) -> FeatureFacts:
    """What the features of a split depend on.

    Args:
        recipe: of pre-training.
        encoder: its image encoder, with or without weights.
        weights: their hash.
        shards: the split.
    """
    return FeatureFacts(**wanted(recipe, shards, weights), tokens=encoder.tokens, width=encoder.width)


def wanted(recipe: PretrainRecipe, shards: Shards, weights: str = "") -> Mapping[str, Any]:
    """What must hold of features that stand in for the image encoder of a recipe, as far as it is known.

    Args:
        weights: hash of the encoder's; empty before they are loaded.
    """
    vit = recipe.model.vit
    known = {
        "name": vit.name,
        "heads": vit.heads,
        "pixel_norm": vit.pixel_norm,
        "image_size": recipe.data.image_size,
        "shards": shards.fingerprint,
        "samples": len(shards),
    }
    return known | ({"encoder": weights} if weights else {})


def open_features(
    setting: str, dataset: str, recipe: PretrainRecipe, shards: Shards, weights: str = ""
) -> SplitFeatures | None:
    """The cached features of a split; None where the setting is `live`.

    Args:
        setting, dataset, recipe: see `folder_of`.
        shards: the split.
        weights: see `wanted`.

    Raises:
        DataError: there are none, or they are damaged, or of another encoder, split or image size.
        MuError: the encoder is trained, so that its features change.
    """
    if setting == LIVE:
        return None
    if not recipe.model.vit.frozen:
        raise MuError(
            "data.features: pre-training trained the image encoder too (model.vit.frozen: false), and its "
            "features with it; set it to live"
        )
    return SplitFeatures(folder_of(setting, dataset, recipe), shards.split, wanted(recipe, shards, weights))


def has_features(setting: str, dataset: str, recipe: PretrainRecipe, split: str) -> bool:
    """Whether features of a split were begun to be computed where the setting says."""
    return setting != LIVE and facts_path(folder_of(setting, dataset, recipe), split).exists()


def refuse_other_encoder(features: SplitFeatures | None, weights: str) -> None:
    """Refuse cached features of other weights than those that have been loaded, by their hash.

    Raises:
        DataError: they are.
    """
    if features is not None:
        path = facts_path(features.folder, features.split)
        check_facts(path, features.facts, {"encoder": weights}, OTHERWISE)


def features_fact(features: Mapping[str, SplitFeatures | None]) -> dict[str, Any]:
    """What the provenance of a start says of the features that it reads; empty where it reads none."""
    read = {split: one for split, one in features.items() if one is not None}
    if not read:
        return {}
    first = next(iter(read.values()))
    return {FACT: {"folder": str(first.folder), "splits": sorted(read), "encoder": first.facts.encoder}}
