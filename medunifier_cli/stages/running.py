"""What all stages do in the same way: hold the run folder, train, and report how it went."""

from __future__ import annotations

import dataclasses
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import Facts, agree, together
from medunifier_cli.errors import GroupError, MuError, Stopped
from medunifier_cli.files import read_text, write_text
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.recipe.schema_train import CompileConfig, LoopConfig, OptimConfig
from medunifier_cli.run.processors import ranks_here, why
from medunifier_cli.run.provenance import code_facts, command_line, data_facts
from medunifier_cli.run.record import Run, flatten
from medunifier_cli.terminal.say import say
from medunifier_cli.train.compiling import compiled, is_compiled
from medunifier_cli.train.loop import fit
from medunifier_cli.train.stage import Stage

SIGN = ".start"
"""File by which the ranks of one start see whether their run folder is the same."""
SIGN_LIMIT = 30.0
"""Seconds that a network file system may take to show it."""


@dataclass(frozen=True)
class Begin:
    """What a stage adds to the record of a start."""

    free: tuple[str, ...] = ()
    """Recipe keys that may differ from the run's, this time."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of this start, which fit JSON."""


def start_facts(
    recipe: PretrainRecipe | FinetuneRecipe | PriorRecipe, shards: Mapping[str, str], **more: Any
) -> Facts:
    """What all ranks of a run must agree on, see `distributed.agreement`.

    Args:
        shards: split -> fingerprint of its contents.
        more: subject, such as `tokenizer` -> hash.
    """
    if world.size() == 1:
        return {}  # nobody to differ from
    # where the shards are and how they are read may depend on the machine: what is in them is compared
    own = flatten(dataclasses.asdict(recipe))
    keys = sorted(own.keys() - {"data.shards", "data.workers"})
    return {
        "the recipe": {key: own[key] for key in keys},
        "the code": code_facts(),
        "the shards": {split: fingerprint[:12] for split, fingerprint in shards.items()},
        **{subject.replace("_", " "): {"hash": value} for subject, value in more.items()},
    }


@contextmanager
def open_run(
    run: Run, recipe: PretrainRecipe | FinetuneRecipe | PriorRecipe, dataset: str, shards: Path,
    splits: Mapping[str, str] | None = None,
    begin: Callable[[], Begin] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Hold a run folder, in which this start is recorded first; all ranks enter and leave together.

    Args:
        dataset: name of the data set that is trained on.
        shards: its folder.
        splits: hash of the contents of each split that is used, which must stay the same.
        begin: looks at the run under its lock, and says what else to record of this start and which keys of
            the recipe are free to change in it.

    Raises:
        CheckpointError: another process trains this run, or it was started with another recipe or data.
        GroupError: another rank sees another folder.
    """
    with ExitStack() as held:

        def start() -> None:
            # the main rank alone writes, and alone holds the lock: ranks of one run would lock each other out
            held.enter_context(run.locked(world.is_main()))
            if world.is_main():
                more = begin() if begin is not None else Begin()
                facts = {dataset: data_facts(shards, splits)}
                run.begin(recipe, facts, command_line(), free=more.free, more=more.facts)

        new = not run.recipe.exists()
        # the others must not read the folder before it is there ...
        together(start)
        _check_shared(run)
        try:
            yield
        except MuError as error:
            # a recipe that does not fit the data is noticed here, and is to be corrected under the same name
            if new and world.is_main() and not isinstance(error, Stopped):
                run.withdraw()
            raise
        # ... nor leave while the main rank still measures: a launcher takes that for the end of the run. They
        # wait without a limit, as long as it lives.
        world.barrier()


def _check_shared(run: Run) -> None:
    """Check that all ranks see the run folder that the main rank writes to.

    Raises:
        GroupError: one does not, as its runs folder is on a disk of its own machine.
    """
    if world.size() == 1:
        return
    path = run.folder / SIGN
    if world.is_main():
        write_text(path, secrets.token_hex(8))
    sign = world.exchange(read_text(path) if world.is_main() else None)[0]

    def look() -> None:
        deadline = time.monotonic() + SIGN_LIMIT
        while not path.is_file() or read_text(path) != sign:  # network file systems show new files late
            if time.monotonic() > deadline:
                raise GroupError(
                    f"{run.folder.absolute()} on {socket.gethostname()} is not the folder that rank 0 writes "
                    "to; set MU_RUNS to a file system that all machines share"
                )
            time.sleep(0.1)

    together(look)
    if world.is_main():
        path.unlink(missing_ok=True)


def _threads(accelerator: Accelerator, of_recipe: int) -> str:
    """How many threads compute in each process, and why, where they do: a GPU leaves them idle."""
    if accelerator.device.type != "cpu":
        return ""
    count = torch.get_num_threads()
    each = " each" if world.size() > 1 else ""
    return f", {count} thread{'s' if count > 1 else ''}{each} (by {why(count, of_recipe, ranks_here())})"


def compiles_here(train: LoopConfig, device: torch.device) -> bool:
    """Whether training steps are compiled, on all ranks alike; says so where `auto` cannot.

    Raises:
        MuError: `train.compile` is `always`, and a rank's machine cannot.
        GroupError: ranks differ, as their machines do.
    """
    choice = train.compile if isinstance(train, CompileConfig) else "never"

    def decide() -> tuple[tuple[bool, str], Facts]:
        found = is_compiled(choice, train.deterministic, device.type)
        return found, {"train.compile": {"compiles here": found[0]}}

    compiles, why = agree(decide)
    if choice == "auto" and device.type == "cuda" and not compiles and world.is_main():
        say(f"train.compile: {why}; training steps take longer")
    return compiles


def train_stage(
    stage: Stage, run: Run, accelerator: Accelerator, train: LoopConfig, optim: OptimConfig, subject: str,
    compiles: bool = False,
) -> None:  # fmt: skip
    """Train a stage to its last step, and print on stderr what is trained and on what.

    Args:
        subject: what is learned from what, for the first line.
        compiles: the parts that are worth it, for training steps.

    Raises:
        Stopped: a signal came; the checkpoint is saved.
        MuError: the loss is not finite.
    """
    if world.is_main():
        threads = _threads(accelerator, train.threads)
        say(
            f"{run.folder}: {subject}; {stage.steps:,} steps of {train.global_batch} on {world.size()} "
            f"{accelerator.device.type} process{'es' if world.size() > 1 else ''}{threads}"
            f"{', compiled in the first step' if compiles else ''}"
        )
    with compiled(stage.module) if compiles else nullcontext():
        steps = fit(stage, run, accelerator, train, optim)
    # no `accelerator.end_training`, which ends the group: what is measured next is measured by all ranks
    if not steps and world.is_main():
        say(f"{run.folder} is complete: {stage.over() or f'{stage.steps:,} steps'}")
