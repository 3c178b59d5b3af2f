"""`mu check RECIPE`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from medunifier_cli.errors import MuError
from medunifier_cli.options.sections import with_sections_there
from medunifier_cli.options.shared import format_option, overrides_option, recipe_argument
from medunifier_cli.recipe.load import Recipe, load_any
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.terminal.options import PROCESSES
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import show

if TYPE_CHECKING:
    from medunifier_cli.stages.check.shared import Check


@click.command()
@recipe_argument()
@overrides_option
@click.option("--num-processes", type=PROCESSES, help="Number of ranks (default: that of the recipe).")
@click.option("--hashes", is_flag=True, help="Compare the SHA-256 of every shard; reads all of them.")
@format_option
def check(recipe: str, overrides: tuple[str, ...], num_processes: int | None, hashes: bool) -> None:
    """Check that everything an offline run needs is in place.

    Checks the shards, weights, tokenizer, sizes and batch of RECIPE, and downloads nothing. All problems are
    listed; the exit code is 1 if there is one.
    """
    loaded = load_any(recipe, overrides)
    if isinstance(loaded, PretrainRecipe):
        loaded = with_sections_there(loaded, overrides)
    problems, rows = 0, [["state", "check", "result"]]
    for result in _checks(loaded, num_processes or 0, hashes):
        state = "ok" if result.ok else "problem"
        rows.append([state, result.name, result.result])
        if form() == "text":  # at once: some take their time
            show(f"{state:<8} {result.name}: {result.result}")
        problems += not result.ok
    if form() != "text":
        from medunifier_cli.evaluate.render import render

        show(render(rows, form(), words=3))
    if problems:
        raise MuError(
            f"{loaded.name} is not ready: {problems} problem{'s' if problems > 1 else ''}, listed above"
        )
    show(f"{loaded.name} is ready", err=form() != "text")


def _checks(recipe: Recipe, processes: int, hashes: bool) -> Iterator[Check]:
    """The checks of the recipe's stage, made one by one as they are asked for."""
    if isinstance(recipe, PretrainRecipe):
        from medunifier_cli.stages.check.pretrain import check_pretrain

        return check_pretrain(recipe, processes, hashes)
    if isinstance(recipe, FinetuneRecipe):
        from medunifier_cli.stages.check.finetune import check_finetune

        return check_finetune(recipe, processes, hashes)
    if isinstance(recipe, PriorRecipe):
        from medunifier_cli.stages.check.fit_prior import check_fit_prior

        return check_fit_prior(recipe, processes, hashes)
    raise AssertionError(f"no check for the stage {recipe.stage}")
