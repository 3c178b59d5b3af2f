"""How many pairs ITC and ITM contrast with each other, and whether a run that resumes would change that."""

from __future__ import annotations

from medunifier_cli.checkpoint import store
from medunifier_cli.data.loader import micro_batch_size
from medunifier_cli.distributed import world
from medunifier_cli.errors import CheckpointError
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run

PAIRS = "pairs_per_pass"
"""Name of the number in the provenance of a start."""


def pairs_per_pass(recipe: PretrainRecipe, ranks: int) -> int:
    """Pairs of one forward pass over all ranks, which are all that a pair is contrasted with.

    0 where nothing of the recipe depends on it: without ITC and ITM.
    """
    if not (recipe.objectives.itc or recipe.objectives.itm):
        return 0
    return ranks * micro_batch_size(recipe.train.global_batch, recipe.train.micro_batch, ranks)


def free_keys(run: Run, recipe: PretrainRecipe) -> tuple[str, ...]:
    """Recipe keys that may change in this start: the contrast stays what it was, or is meant to change.

    Raises:
        CheckpointError: this number of ranks changes what the run's checkpoint was trained with.
    """
    now, before = pairs_per_pass(recipe, world.size()), trained_with(run)
    if recipe.train.change_contrast or now == before:
        return ("train.micro_batch",)
    if before is None or not now:
        return ()
    saved = load_saved(run.recipe, PretrainRecipe).train
    if (recipe.train.micro_batch, recipe.train.global_batch) != (saved.micro_batch, saved.global_batch):
        return ()  # another recipe, which is refused as one
    processes = "1 process" if world.size() == 1 else f"{world.size()} processes"
    raise CheckpointError(
        f"{run.folder}: ITC and ITM contrasted {before} pairs until now, with {processes} it would be {now}; "
        f"give --num-processes {before * world.size() // now}, fit train.micro_batch to it, or allow it with "
        "-o train.change_contrast=true"
    )


def trained_with(run: Run) -> int | None:
    """Pairs per pass that the run's newest checkpoint was trained with; None without a checkpoint."""
    if not store.steps(run.checkpoints) or not run.recipe.exists():
        return None
    recorded = run.last_start().get(PAIRS)
    if isinstance(recorded, int):
        return recorded
    # an earlier version recorded the number of ranks alone; of the random state, the smallest of the files
    checkpoint = store.newest(run.checkpoints, only=("rng",))
    ranks = checkpoint.facts.get("ranks") if checkpoint is not None else None
    return pairs_per_pass(load_saved(run.recipe, PretrainRecipe), ranks) if isinstance(ranks, int) else None
