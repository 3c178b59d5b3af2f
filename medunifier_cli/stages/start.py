"""Start a training verb: its options, `--fresh`, `--sbatch`, and one process or several.

Imports no torch, so that `mu pretrain --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.distributed import group, launch, variables
from medunifier_cli.files import read_text, write_text
from medunifier_cli.options.shared import (
    device_option,
    format_option,
    name_option,
    overrides_option,
    recipe_argument,
)
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import check_run_name, runs_root
from medunifier_cli.terminal.options import PROCESSES
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show

if TYPE_CHECKING:
    from medunifier_cli.run.record import Run

AnyRecipe = TypeVar("AnyRecipe", PretrainRecipe, FinetuneRecipe, PriorRecipe)
Verb = TypeVar("Verb", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    overrides_option,
    name_option("that of the recipe"),
    click.option(
        "--num-processes",
        type=PROCESSES,
        help="Processes to start on this machine (default: one per GPU, or one).",
    ),
    click.option(
        "--fresh", is_flag=True, help="Start over; an existing run is renamed to NAME.old-1, not deleted."
    ),
    click.option(
        "--deterministic", is_flag=True, help="Deterministic GPU kernels (train.deterministic); slower."
    ),
    click.option(
        "--fresh-in-job",
        "job",
        default="",
        metavar="ID",
        help="As --fresh, but once for a SLURM job: queued again, the job resumes its own run. --sbatch "
        "writes it for --fresh.",
    ),
    device_option,
    format_option,
    click.option("--dry-run", is_flag=True, help="Say what would be started or resumed, and do nothing."),
    job_options(resumes=True, nodes=True),
)


def training_options(verb: Verb) -> Verb:
    """Give a click command the argument RECIPE and the options that `StartOptions` holds."""
    for option in reversed(_OPTIONS):
        verb = option(verb)
    return recipe_argument()(verb)


@dataclass(frozen=True)
class StartOptions:
    """Values of the options that `training_options` adds."""

    overrides: tuple[str, ...]
    name: str
    num_processes: int | None
    fresh: bool
    sbatch: JobOptions | None = None
    job: str = ""
    deterministic: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.dry_run and self.sbatch:
            raise click.UsageError("--sbatch starts nothing, so there is nothing to try with --dry-run")
        if self.deterministic:  # another way to write the recipe's key, so that the run keeps it
            object.__setattr__(self, "overrides", (*self.overrides, "train.deterministic=true"))

    def start(
        self, train: Callable[[AnyRecipe, Path], None], recipe: AnyRecipe, default_name: str,
        workers: int = 0, fill_in: Callable[[AnyRecipe, Path], AnyRecipe] | None = None,
    ) -> None:  # fmt: skip
        """Call `train(recipe, run folder)` in this process, or in each of several new ones.

        A process that `srun`, `torchrun` or `accelerate launch` started is one rank already, and starts none.

        Args:
            train: picklable, as new processes are spawned.
            default_name: of the run, unless `--name` gives another.
            workers: loader processes per rank, for the SLURM script.
            fill_in: completes the recipe with what depends on the run folder, before any process starts.
        """
        name = check_run_name(self.name or default_name)
        folder = runs_root() / name
        in_recipe = recipe.train.processes
        if self.sbatch:
            # the login node that prints the script may have no GPU to count
            processes = self.num_processes or in_recipe or 1
            from medunifier_cli.data.loader import micro_batch_size

            # not after hours in the queue
            ranks = processes * self.sbatch.nodes
            micro_batch_size(recipe.train.global_batch, recipe.train.micro_batch, ranks, "samples")
            self.sbatch.show(name, processes=processes, cores=workers + 1, resumes=True)
            return
        from medunifier_cli.run.record import Run

        if self.dry_run:
            if fill_in is not None:
                recipe = fill_in(recipe, folder)
            from medunifier_cli.overview.runs import planned_rows, render_facts

            processes = self.num_processes or in_recipe
            rows = planned_rows(recipe, Run(folder), processes, anew=self.fresh)
            show(render_facts(rows, form()))
            return
        # before anything imports Accelerate, and in the parent alone: one line, however many ranks
        variables.check_variables(recipe.train.precision)
        joined = group.joined_group()
        # one rank alone renames, or the second would move the new run aside
        if (self.fresh or self.job) and (not joined or group.joined_rank() == 0):
            self._set_aside(Run(folder))
        # after --fresh: the old run's recipe must not decide what the new one starts from; and before any
        # rank starts: all must agree on "the newest run", which may change while they start
        if fill_in is not None:
            recipe = fill_in(recipe, folder)
        launch.in_ranks(joined, self.num_processes or 0, in_recipe, train, recipe, folder)

    def _set_aside(self, run: Run) -> None:
        """Move an earlier run out of the way; in a job, unless it is the run that this job began."""
        from medunifier_cli.run.record import JOB

        mark = run.folder / JOB
        if not self.fresh and mark.is_file() and read_text(mark).strip() == self.job:
            return
        old = run.set_aside()
        if old is not None:
            say(f"{run.folder} is now {old}")
        if self.job:  # at once: a job that is stopped in start-up must find its mark, or no run
            run.folder.mkdir(parents=True, exist_ok=True)
            write_text(mark, self.job + "\n")
