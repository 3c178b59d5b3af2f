"""What the verbs that train have in common: their options, `--fresh`, `--sbatch`, one process or several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from medunifier_cli.distributed import launch
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import runs_root
from medunifier_cli.stages import sbatch

AnyRecipe = TypeVar("AnyRecipe", PretrainRecipe, FinetuneRecipe, PriorRecipe)
Verb = TypeVar("Verb", bound=Callable[..., Any])

_OPTIONS = (
    click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one recipe value."),
    click.option("--run", "name", default="", help="Name of the run; by default the recipe's."),
    click.option(
        "--num-processes", type=click.IntRange(min=1), help="Ranks here; by default one per GPU, or one."
    ),
    click.option("--fresh", is_flag=True, help="Start over; an existing run is moved aside, not deleted."),
    click.option("--sbatch", is_flag=True, help="Print a SLURM script for this command and do nothing."),
)


def training_options(verb: Verb) -> Verb:
    """Gives a verb the argument RECIPE and the options of `Asked`."""
    for option in reversed(_OPTIONS):
        verb = option(verb)
    return click.argument("recipe")(verb)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class StartOptions:
    """The values of `training_options`."""

    overrides: tuple[str, ...]
    name: str
    num_processes: int | None
    fresh: bool
    sbatch: bool

    def start(
        self, work: Callable[[AnyRecipe, Path], None], recipe: AnyRecipe, name: str, workers: int = 0,
        complete: Callable[[AnyRecipe, Path], AnyRecipe] | None = None,
    ) -> None:  # fmt: skip
        """Call `work(recipe, folder)` in this process, in the group it is in, or in new ranks.

        Args:
            name: of the run where the command line gives none.
            workers: loader processes per rank, for the SLURM script.
            complete: fills in what the recipe leaves open, once `--fresh` has moved an old run aside.
        """
        name = self.name or name
        folder = runs_root() / name
        wanted = recipe.train.processes
        if self.sbatch:
            click.echo(sbatch.script(sys.argv[1:], name, self.num_processes or wanted or 1, workers))
            return
        from medunifier_cli.distributed import world
        from medunifier_cli.run import record

        joined = launch.joined_group()
        if self.fresh and (not joined or launch.joined_rank() == 0):
            old = record.Run(folder).set_aside()
            if old is not None:
                click.echo(f"mu: {folder} is now {old}", err=True)
        if complete is not None:
            recipe = complete(recipe, folder)
        processes = 1 if joined else launch.wanted_processes(self.num_processes or 0, wanted)
        if processes > 1:
            sys.exit(launch.run_ranks(processes, work, (recipe, folder)))
        try:
            work(recipe, folder)
        finally:
            world.leave()
