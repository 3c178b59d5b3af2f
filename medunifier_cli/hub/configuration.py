"""`config.json` of an exported model: the recipe that decides its sizes, and what identifies its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

from medunifier_cli.checkpoint.exported import MODEL_TYPE, Tower, recipe_of, weights_hash
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.model.weights import is_hub_name
from medunifier_cli.recipe.load import dump_recipe
from medunifier_cli.recipe.schema import LIVE, DataConfig, PretrainRecipe

WORDS = ("random", "train", "hub")
"""Values of keys for weights and tokenizers that are no path."""


class MedUnifierConfig(PretrainedConfig):  # type: ignore[misc, no-untyped-call]
    """Configuration of `MedUnifierModel`.

    Args:
        recipe: of the pre-training run, as YAML has it; keys that are missing have the paper's values.
        vocab_size: token ids, [DEC] included.
        tower: of a frozen image encoder, whether the weights hold it, and its hash.
        run: name of the run that was exported.
        step: its optimiser steps.
        checkpoint: hash of its checkpoint, as result files have it.
        weights_sha256, tokenizer_sha256: of what was exported; the weights may be trained further.

    Raises:
        RecipeError: by `pretraining`, if `recipe` is none.
    """

    model_type = MODEL_TYPE

    def __init__(
        self, recipe: dict[str, Any] | None = None, vocab_size: int = 0, tower: Tower | None = None,
        run: str = "", step: int = 0, checkpoint: str = "", weights_sha256: str = "",
        tokenizer_sha256: str = "", **kwargs: Any,
    ) -> None:  # fmt: skip
        self.recipe = recipe or {}
        self.vocab_size = vocab_size
        self.tower = tower or Tower(bundled=True, sha256="")
        self.run = run
        self.step = step
        self.checkpoint = checkpoint
        self.weights_sha256 = weights_sha256
        self.tokenizer_sha256 = tokenizer_sha256
        super().__init__(**kwargs)

    @classmethod
    def of(cls, trained: PretrainedRun, bundle: bool) -> MedUnifierConfig:
        """The configuration of a run's model.

        Args:
            trained: on the CPU, as `restore` returned it.
            bundle: whether a frozen image encoder's weights are exported as well.
        """
        return cls(
            recipe=yaml.safe_load(dump_recipe(published(trained.recipe))),
            vocab_size=trained.tokenizer.size,
            tower=Tower(bundled=bundle, sha256=trained.encoder),
            run=trained.run.folder.resolve().name,
            step=trained.step,
            checkpoint=trained.identity,
            weights_sha256=weights_hash(trained.model, bundle),
            tokenizer_sha256=trained.tokenizer.fingerprint,
        )

    @property
    def pretraining(self) -> PretrainRecipe:
        """The recipe, checked."""
        return recipe_of(self.recipe, "config.json")


def published(recipe: PretrainRecipe) -> PretrainRecipe:
    """A recipe without the paths of the machine it was trained on; of files and folders the name stays."""
    vit, qformer = recipe.model.vit, recipe.model.qformer
    model = dataclasses.replace(
        recipe.model,
        vit=dataclasses.replace(vit, weights=_named(vit.weights)),
        qformer=dataclasses.replace(qformer, weights=_named(qformer.weights)),
    )
    data = dataclasses.replace(recipe.data, shards=DataConfig().shards, features=LIVE)
    text = dataclasses.replace(recipe.text, tokenizer=_named(recipe.text.tokenizer))
    return dataclasses.replace(recipe, data=data, model=model, text=text)


def _named(source: str) -> str:
    return source if source in WORDS or is_hub_name(source) else Path(source).name
