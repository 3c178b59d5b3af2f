"""`mu check RECIPE`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from medunifier_cli.errors import MuError
from medunifier_cli.recipe.load import Recipe, load_any
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe

if TYPE_CHECKING:
    from medunifier_cli.stages.check.pretrain import Finding


@click.command()
@click.argument("recipe")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one recipe value.")
@click.option("--num-processes", type=click.IntRange(min=1), help="Ranks; by default what the recipe says.")
@click.option("--hashes", is_flag=True, help="Read every shard and compare its SHA-256; takes a while.")
def check(recipe: str, overrides: tuple[str, ...], num_processes: int | None, hashes: bool) -> None:
    """Find out what a run would miss on a node without network.

    Looks at shards, weights, tokenizer, sizes and batch of RECIPE, and fetches nothing. All problems are
    listed; the exit code is 1 if there is one.
    """
    loaded = load_any(recipe, overrides)
    problems = 0
    for finding in _findings(loaded, num_processes or 0, hashes):
        click.echo(f"{'ok' if finding.good else 'problem':<8} {finding.what}: {finding.said}")
        problems += not finding.good
    if problems:
        raise MuError(
            f"{loaded.name} is not ready: {problems} problem{'s' if problems > 1 else ''}, listed above"
        )
    click.echo(f"{loaded.name} is ready")


def _findings(recipe: Recipe, processes: int, hashes: bool) -> Iterator[Finding]:
    """What there is to look at depends on the stage."""
    if isinstance(recipe, PretrainRecipe):
        from medunifier_cli.stages.check.pretrain import look

        return look(recipe, processes, hashes)
    if isinstance(recipe, FinetuneRecipe):
        from medunifier_cli.stages.check.finetune import look_at_finetuning

        return look_at_finetuning(recipe, processes, hashes)
    if isinstance(recipe, PriorRecipe):
        from medunifier_cli.stages.check.fit_prior import look_at_priors

        return look_at_priors(recipe, processes, hashes)
    raise AssertionError(f"no check for the stage {recipe.stage}")
