"""`mu fit-prior RECIPE`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run, newest_run, runs_root


@click.command()
@click.argument("recipe")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one recipe value.")
@click.option("--run", "name", default="", help="Name of the run; by default the recipe's.")
@click.option("--from", "source", default="", help="Pre-training run; by default the newest.")
@click.option(
    "--num-processes", type=click.IntRange(min=1), help="Ranks here; by default one per GPU, or one."
)
@click.option("--fresh", is_flag=True, help="Start over; an existing run is moved aside, not deleted.")
def fit_prior(
    recipe: str, overrides: tuple[str, ...], name: str, source: str, num_processes: int | None, fresh: bool
) -> None:
    """Encode a split to codes, then fit the top and the bottom prior; goes on where an earlier call stopped.

    RECIPE is a YAML file or the name of a shipped one, such as `prior` or `prior-demo`.
    """
    loaded = load_recipe(recipe, overrides, PriorRecipe)
    folder = runs_root() / (name or loaded.name)
    from medunifier_cli.train import launch, record, world
    from medunifier_cli.train.prior import run_fitting

    joined = launch.joined_group()
    if fresh and (not joined or launch.joined_rank() == 0):
        old = record.Run(folder).set_aside()
        if old is not None:
            click.echo(f"mu: {folder} is now {old}", err=True)
    pretrained = _pretrained(source or loaded.prior.pretrained, folder)
    loaded = dataclasses.replace(loaded, prior=dataclasses.replace(loaded.prior, pretrained=pretrained))
    processes = 1 if joined else launch.wanted_processes(num_processes or 0, loaded.train.processes)
    if processes > 1:
        sys.exit(launch.run_ranks(processes, run_fitting, (loaded, folder)))
    try:
        run_fitting(loaded, folder)
    finally:
        world.leave()


def _pretrained(asked: str, folder: Path) -> str:
    """The pre-training run: the one asked for, the one this run began with, or the newest. A name where it
    lies under the runs folder, so that both may be moved together."""
    from medunifier_cli.checkpoint.restore import is_pretrained
    from medunifier_cli.train.record import Run

    if not asked and Run(folder).recipe.exists():
        asked = load_recipe(Run(folder).recipe, (), PriorRecipe).prior.pretrained
    run = find_run(asked) if asked else newest_run(lambda path: is_pretrained(Run(path)), "fit-prior")
    return run.name if run.parent == runs_root() else str(run.resolve())
