"""The text sections of a pre-training recipe, which yield to a data set that has none of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import DataConfig, PretrainRecipe
from medunifier_cli.recipe.settings import read_overrides
from medunifier_cli.roots import shards_folder
from medunifier_cli.terminal.say import say

KEY = "data.sections"


def load_for_data(path_or_name: str, overrides: tuple[str, ...]) -> PretrainRecipe:
    """A pre-training recipe with sections that its data set has, see `with_sections_there`.

    Raises:
        RecipeError: as `recipe.load.load_recipe`.
        MuError: no such data set.
        DataError: shards that are damaged.
    """
    return with_sections_there(load_recipe(path_or_name, overrides, PretrainRecipe), overrides)


def with_sections_there(recipe: PretrainRecipe, overrides: Iterable[str]) -> PretrainRecipe:
    """The recipe, with the sections that its data set names where this has none that the recipe asks for.

    One line on stderr says so. The recipe that a run keeps then states the sections it was trained on.
    Without shards, or where `-o data.sections=...` asks for sections, the recipe stays as it is.

    Args:
        overrides: those that the recipe was loaded with.

    Raises:
        MuError: no such data set.
        DataError: shards that are damaged.
    """
    data = recipe.data
    folder = Path(data.shards) if data.shards else shards_folder(data.dataset)
    asked = KEY in read_overrides(tuple(overrides), PretrainRecipe).by_key
    if asked or not data.sections or not folder.is_dir():
        return recipe
    own = prepared_dataset(data.dataset, data.shards).text_sections
    if not own or set(own) & set(data.sections) or _any_text(folder, data):
        return recipe
    say(
        f"{data.dataset} has no section {', '.join(data.sections)}; "
        f"its own sections are used: {', '.join(own)}"
    )
    return replace(recipe, data=replace(data, sections=tuple(own)))


def _any_text(folder: Path, data: DataConfig) -> bool:
    """Whether a sample has text in one of the recipe's sections, though the data set does not name it."""
    # here, and not above: they import NumPy and torch, and `mu pretrain --help` answers at once
    from medunifier_cli.data.shards import Shards, split_names

    for split in {data.train, data.valid, data.test} & set(split_names(folder)):
        with closing(Shards.open(folder, split)) as shards:
            for row in range(len(shards)):
                there = shards.meta(row).get("sections") or {}
                if any((there.get(name) or "").strip() for name in data.sections):
                    return True
    return False
