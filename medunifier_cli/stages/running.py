"""What all stages do in the same way: hold the run folder, train, and report how it went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from medunifier_cli.distributed import world
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.recipe.schema_train import LoopConfig, OptimConfig
from medunifier_cli.run.provenance import command_line, data_facts
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.say import say
from medunifier_cli.train.loop import fit
from medunifier_cli.train.stage import Stage


@contextmanager
def open_run(
    run: Run, recipe: PretrainRecipe | FinetuneRecipe | PriorRecipe, dataset: str, shards: Path,
    splits: Mapping[str, str] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Hold a run folder, in which this start is recorded first; all ranks enter and leave together.

    Args:
        dataset: name of the data set that is trained on.
        shards: its folder.
        splits: hash of the contents of each split that is used, which must stay the same.

    Raises:
        CheckpointError: another process trains this run, or it was started with another recipe or data.
    """
    # the main rank alone writes, and alone holds the lock: the ranks of one run would lock each other out
    with run.locked(world.is_main()):
        if world.is_main():
            run.begin(recipe, {dataset: data_facts(shards, splits)}, command_line())
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
        say(
            f"{run.folder}: {subject}; {stage.steps:,} steps of {train.global_batch} on {world.size()} "
            f"{accelerator.device.type} process{'es' if world.size() > 1 else ''}"
        )
    steps = fit(stage, run, accelerator, train, optim)
    accelerator.end_training()
    if not steps and world.is_main():
        say(f"{run.folder} is complete: {stage.steps:,} steps")
