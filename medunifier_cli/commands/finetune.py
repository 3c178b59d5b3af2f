"""`mu finetune RECIPE`."""

from __future__ import annotations

import sys

import click

from medunifier_cli.recipe.load import find_recipe, load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import runs_root


@click.command()
@click.argument("recipe")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one recipe value.")
@click.option("--from", "started_from", default="", help="Pre-training run; by default the newest.")
@click.option("--run", "name", default="", help="Name of the run; by default the recipe's and the fraction.")
@click.option(
    "--num-processes", type=click.IntRange(min=1), help="Ranks here; by default one per GPU, or one."
)
@click.option("--fresh", is_flag=True, help="Start over; an existing run is moved aside, not deleted.")
@click.option("--sbatch", is_flag=True, help="Print a SLURM script for this command and do nothing.")
def finetune(
    recipe: str,
    overrides: tuple[str, ...],
    started_from: str,
    name: str,
    num_processes: int | None,
    fresh: bool,
    sbatch: bool,
) -> None:
    """Fine-tune a pre-trained model for classification; goes on where an earlier call stopped.

    RECIPE is a YAML file or the name of a shipped one, such as `finetune-rsna`. The best epoch by the
    validation split is kept, and measured once on the held-out split.
    """
    loaded = load_recipe(recipe, overrides, FinetuneRecipe)
    name = name or f"{loaded.name or find_recipe(recipe).stem}-{loaded.data.fraction:g}"
    folder = runs_root() / name
    if sbatch:
        from medunifier_cli.train.sbatch import script

        click.echo(
            script(sys.argv[1:], name, num_processes or loaded.train.processes or 1, loaded.data.workers)
        )
        return
    from medunifier_cli.train import launch, record, world
    from medunifier_cli.train.finetune import run_finetuning
    from medunifier_cli.train.finetune_task import with_pretrained

    joined = launch.joined_group()
    if fresh and (not joined or launch.joined_rank() == 0):
        old = record.Run(folder).set_aside()
        if old is not None:
            click.echo(f"mu: {folder} is now {old}", err=True)
    loaded = with_pretrained(loaded, started_from, folder)
    processes = 1 if joined else launch.wanted_processes(num_processes or 0, loaded.train.processes)
    if processes > 1:
        sys.exit(launch.run_ranks(processes, run_finetuning, (loaded, folder)))
    try:
        run_finetuning(loaded, folder)
    finally:
        world.leave()
