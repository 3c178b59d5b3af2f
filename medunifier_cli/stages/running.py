"""What the three stages do alike: find the run to start from, hold the run folder, train, say how it went."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from accelerate import Accelerator

from medunifier_cli.checkpoint.pretrained import starting_run
from medunifier_cli.distributed import world
from medunifier_cli.recipe.load import load_own
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.recipe.schema_train import LoopConfig, OptimConfig
from medunifier_cli.run.provenance import command_line, data_facts
from medunifier_cli.run.record import Run
from medunifier_cli.train.loop import Stage, fit

DerivedRecipe = TypeVar("DerivedRecipe", FinetuneRecipe, PriorRecipe)


def with_pretrained(recipe: DerivedRecipe, given: str = "", folder: Path | None = None) -> DerivedRecipe:
    """The recipe with the pre-training run it starts from filled in.

    Args:
        given: on the command line; else the recipe's own, else the one that the run in `folder` started from,
            else the newest pre-training run.
        folder: of the run, which may not exist yet.

    Raises:
        CheckpointError: there is no such run, or it is not a pre-training run.
    """
    # a resumed run keeps the run it started from, though a newer one may have been trained since
    earlier = load_own(folder / "recipe.yaml", type(recipe)) if folder is not None else None
    name = given or _pretrained(recipe) or (_pretrained(earlier) if earlier is not None else "")
    name = starting_run(name, recipe.stage)
    if isinstance(recipe, FinetuneRecipe):
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=name))
    return dataclasses.replace(recipe, prior=dataclasses.replace(recipe.prior, pretrained=name))


def _pretrained(recipe: FinetuneRecipe | PriorRecipe) -> str:
    return recipe.model.pretrained if isinstance(recipe, FinetuneRecipe) else recipe.prior.pretrained


@contextmanager
def open_run(
    run: Run, recipe: PretrainRecipe | FinetuneRecipe | PriorRecipe, dataset: str, shards: Path
) -> Iterator[None]:
    """Hold a run folder, in which this start is recorded first; all ranks enter and leave together.

    Args:
        dataset: name of the data set that is trained on.
        shards: its folder.

    Raises:
        CheckpointError: another process trains this run, or it was started with another recipe.
    """
    # the main rank alone writes, and alone holds the lock: the ranks of one run would lock each other out
    with run.locked(world.is_main()):
        if world.is_main():
            run.begin(recipe, {dataset: data_facts(shards)}, command_line())
        # the others must not read the folder before it is there ...
        world.barrier()
        yield
        # ... nor leave while the main rank still measures: a launcher takes that for the end of the run
        world.barrier()


def train_stage(
    stage: Stage, run: Run, accelerator: Accelerator, train: LoopConfig, optim: OptimConfig, subject: str
) -> None:
    """Train a stage to its last step, and print on stderr what is trained and on what.

    Args:
        subject: what is learned from what, for the first line.

    Raises:
        Stopped: a signal came; the checkpoint is saved.
        MuError: the loss is not finite.
    """
    if world.is_main():
        click.echo(
            f"mu: {run.folder}: {subject}; {stage.steps:,} steps of {train.global_batch} on {world.size()} "
            f"{accelerator.device.type} process{'es' if world.size() > 1 else ''}",
            err=True,
        )
    steps = fit(stage, run, accelerator, train, optim)
    accelerator.end_training()
    if not steps and world.is_main():
        click.echo(f"mu: {run.folder} is complete: {stage.steps:,} steps", err=True)
