"""Resume a run from its newest whole checkpoint, and write the next ones: none with a NaN in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from medunifier_cli.checkpoint import store
from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import together
from medunifier_cli.errors import CheckpointError, NotFiniteError
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.progress import Progress
from medunifier_cli.train.finite import Counts, Skips, not_finite
from medunifier_cli.train.optim import load_state_tensors, state_tensors
from medunifier_cli.train.stage import Stage
from medunifier_cli.train.writer import Writer

PATIENCE = 60.0
"""Seconds within which a network file system has shown a checkpoint to every node."""


def resume(
    stage: Stage, run: Run, accelerator: Accelerator, optimizer: torch.optim.Optimizer, keep: int
) -> tuple[int, Mapping[str, Any], frozenset[str]]:
    """Load the newest whole checkpoint without a NaN, or start the stage.

    Args:
        keep: checkpoints that stay, as of the recipe; a kill may have left more.

    Returns:
        Number of steps done; the facts of the checkpoint, empty without one; and the tensors that are not
        finite on purpose, as `not_finite` names them.

    Raises:
        CheckpointError: it does not fit the stage.
    """
    # what is infinite on purpose, such as a mask, is so before anything is loaded
    meant = frozenset(not_finite({"model": stage.checkpoint_tensors()}))
    dead_ends = run.dead_ends()

    def refusal(checkpoint: store.Checkpoint) -> str:
        if store.identity(run.checkpoints, checkpoint.step) in dead_ends:
            return "no step after it was finite"
        # an older version may have saved it
        wrong = [name for name in not_finite(checkpoint.tensors) if name not in meant]
        return f"{wrong[0]} is not finite" if wrong else ""

    checkpoint = _of_main(run, lambda: store.newest(run.checkpoints, refusal=refusal))
    if checkpoint is None:
        stage.start()
        return 0, {}, meant
    before, now = store.stage_facts(checkpoint, run.folder), stage.facts()
    # facts on both sides alone: an older version may have written fewer of them
    for name in sorted(now.keys() & before.keys()):
        if now[name] != before[name]:
            raise CheckpointError(
                f"{run.folder}: {name} differs from what this run was trained with; "
                "give the run another name with --name"
            )
    try:
        stage.load_tensors(checkpoint.tensors["model"])
        load_state_tensors(stage.module, optimizer, checkpoint.tensors["optimizer"])
        if accelerator.scaler is not None and "scaler" in checkpoint.facts:
            accelerator.scaler.load_state_dict(checkpoint.facts["scaler"])
        # dropout is seeded in each step; this is for a stage or a head plugin that draws anywhere else
        state = checkpoint.tensors["rng"].get(f"cpu.{world.rank()}")
        if state is not None:
            torch.set_rng_state(state)
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{run.folder}: its checkpoint does not fit this recipe's model") from error
    if world.is_main():
        store.tidy(run.checkpoints, checkpoint.step, _kept(keep, checkpoint.facts.get("validated", True)))
    return checkpoint.step, checkpoint.facts, meant


def _of_main(run: Run, newest: Callable[[], store.Checkpoint | None]) -> store.Checkpoint | None:
    """The checkpoint that the main rank chooses, on all ranks.

    Where another node does not see it yet, or reads it otherwise, ranks would resume from different steps.

    Raises:
        CheckpointError: one rank cannot read it.
    """
    chosen = together(lambda: newest() if world.is_main() else None)
    step = world.exchange(None if chosen is None else chosen.step)[0]
    if step is None:
        return None
    path = run.checkpoints / f"step-{step:08d}"
    return together(lambda: chosen if world.is_main() else _load_when_there(path))


def _load_when_there(path: Path) -> store.Checkpoint:
    """Load a checkpoint that another node has read already."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return store.load(path)
        except CheckpointError:
            if time.monotonic() > until:
                raise
        time.sleep(1)
        with suppress(OSError):
            os.listdir(path.parent)  # a network file system looks again


def _kept(keep: int, validated: bool) -> int:
    """How many checkpoints stay beside one that may still have to be validated: the same step is saved again
    then, and a kill may come in between."""
    return keep if validated else keep + 1


@dataclass
class Saver:
    """Writes the checkpoints of a run, after checking that training can resume from them.

    The files are written while the next steps run, at most one checkpoint at a time: see `finish`.

    Args:
        counts: as of the checkpoint that the run resumed from, or the last look.
        meant: tensors that are not finite on purpose, as `not_finite` names them.
        saved: steps done at the last checkpoint.
        validated: False if a signal ended the validation that belongs to that checkpoint.
    """

    stage: Stage
    run: Run
    accelerator: Accelerator
    optimizer: Any
    train: LoopConfig
    skips: Skips
    counts: Counts
    meant: frozenset[str]
    progress: Progress
    saved: int
    validated: bool
    due: bool = False
    """A checkpoint was put off, see `save`."""
    writer: Writer = field(default_factory=Writer)

    def look(self, done: int) -> Counts:
        """Say how many steps were skipped since the last look; the CPU waits for the device.

        Raises:
            NotFiniteError: more in a row than the recipe allows.
        """
        before, self.counts = self.counts, self.skips.read()
        if self.counts.in_a_row >= self.train.skip_limit:
            raise self._not_finite(
                f"loss or gradients not finite in {self.counts.in_a_row} steps in a row, up to step {done:,}",
                done,
            )
        if new := self.counts.skipped - before.skipped:
            self.progress.say(
                f"step {done:,}/{self.stage.steps:,}  {new} step{'s' if new > 1 else ''} skipped, as the "
                f"loss or its gradients were not finite; {self.counts.skipped:,} in all"
            )
        return self.counts

    def save(self, done: int, now: bool, validated: bool = True) -> None:
        """Begin to write a checkpoint unless there is one of this step; on all ranks.

        Args:
            done: steps done.
            now: in any case, and wait until it is whole. Otherwise it is put off in a row of skipped steps:
                it would hold nothing new, and push out the checkpoints from before the row, which a lower
                rate may have to start from.
            validated: False if a signal ended the validation that belongs to this step; it is made up for.

        Raises:
            NotFiniteError: weights, buffers or moments are not finite, or too many steps were skipped.
            CheckpointError: it, or the one before, cannot be written.
        """
        if done != self.saved or not self.validated:
            counts = self.look(done)
            self.due = bool(counts.in_a_row) and not now
            if not self.due:
                self._write(done, counts, validated)
                self.saved, self.validated = done, validated
        if now:
            self.finish()

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the last checkpoint cannot be written, as `finish` will say."""
        return self.writer.failed

    def finish(self) -> None:
        """Wait until the last checkpoint is whole, on all ranks.

        Raises:
            CheckpointError: it cannot be written.
        """
        failure: CheckpointError | None = None
        try:
            self.writer.wait()
        except CheckpointError as error:
            failure = error
        self._agree(failure)

    def close(self) -> None:
        """Let the last checkpoint be completed, however training ended."""
        # should that fail, what ended training has the line: the same command resumes from the one before
        self.writer.join()

    def _write(self, done: int, counts: Counts, validated: bool) -> None:
        """Begin to write on the main rank; the others hear if it cannot, so that none runs ahead of it."""
        # on every rank, before the main one goes to its files: it is an exchange between all of them
        rng = {f"cpu.{rank}": state for rank, state in enumerate(_rng_of_ranks(self.accelerator.device))}
        failure: CheckpointError | None = None
        if world.is_main():
            # Accelerate's wrapper has no state of its own
            plain = getattr(self.optimizer, "optimizer", self.optimizer)
            tensors = {
                "model": self.stage.checkpoint_tensors(),
                "optimizer": state_tensors(self.stage.module, plain),
                "rng": rng,
            }
            keep = _kept(self.train.keep, validated)
            try:
                self.writer.wait()
                if wrong := [name for name in not_finite(tensors) if name not in self.meant]:
                    raise self._not_finite(f"{wrong[0]} is not finite after step {done:,}", done)
                facts = self._facts(counts, validated)
                checkpoint = store.Checkpoint(done, self.writer.copy(tensors), facts)
                self.writer.begin(lambda: store.save(self.run.checkpoints, checkpoint, keep))
            except CheckpointError as error:
                failure = error  # raised below: the other ranks wait there and must hear of it
        self._agree(failure)

    def _facts(self, counts: Counts, validated: bool) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "stage": self.stage.facts(), "ranks": world.size(), "steps": self.stage.steps
        }  # fmt: skip
        if self.accelerator.scaler is not None:
            facts["scaler"] = self.accelerator.scaler.state_dict()
        if not validated:
            facts["validated"] = False
        if counts.shown():
            facts["skips"] = asdict(counts)
        return deepcopy(facts)  # written while training continues

    def _agree(self, failure: CheckpointError | None) -> None:
        """Raise on all ranks what the main one has failed with."""
        if world.any_rank(failure is not None, self.accelerator.device):
            raise failure or CheckpointError(
                f"{self.run.checkpoints}: the main rank could not write its checkpoint"
            )

    def _not_finite(self, what: str, done: int) -> NotFiniteError:
        """The error that ends the run; that it came is recorded, as it lets the rate change."""
        self.close()  # what is kept is known once it is whole
        kept = store.steps(self.run.checkpoints)
        if world.is_main():
            # no step since the newest checkpoint was finite: with another rate none would be either, as a
            # rate comes after the loss
            dead_end = kept and self.counts.in_a_row >= done - kept[-1]
            self.run.note_not_finite(done, store.identity(self.run.checkpoints, kept[-1]) if dead_end else "")
        since, then = (
            (f"step {kept[-1]:,}'s checkpoint is kept", "resume")
            if kept
            else ("no checkpoint was written", "start anew")
        )
        return NotFiniteError(
            f"{self.run.folder}: {what}; {since}; lower the learning rate in the same command to {then}"
        )


def _rng_of_ranks(device: torch.device) -> list[Tensor]:
    return [row.cpu() for row in world.collect_rows(torch.get_rng_state().to(device))]
