"""The table of recipes: stage, which is also the name of its verb -> schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe

SCHEMAS: Mapping[str, type[Any]] = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
    "fit-prior": PriorRecipe,
}
"""In the order of `docs/recipes.md`."""
