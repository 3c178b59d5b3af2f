"""`mu check RECIPE`."""

from __future__ import annotations

import click

from medunifier_cli.errors import MuError
from medunifier_cli.recipe.load import load_recipe


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
    loaded = load_recipe(recipe, overrides)
    from medunifier_cli.train.ready import look

    problems = 0
    for finding in look(loaded, num_processes or 0, hashes):
        click.echo(f"{'ok' if finding.good else 'problem':<8} {finding.what}: {finding.said}")
        problems += not finding.good
    if problems:
        raise MuError(
            f"{loaded.name} is not ready: {problems} problem{'s' if problems > 1 else ''}, listed above"
        )
    click.echo(f"{loaded.name} is ready")
