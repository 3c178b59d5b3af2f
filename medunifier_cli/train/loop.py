"""The training loop of every stage: when to log, validate, save and stop. A stage computes the loss.

Resumable at any step: batches and the learning rate are functions of the step, random numbers of (seed, step,
rank), and everything else is in the checkpoint. A resumed run equals the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medunifier_cli.checkpoint import store
from medunifier_cli.distributed import draws, world
from medunifier_cli.errors import CheckpointError, MuError, Stopped
from medunifier_cli.recipe.schema_train import LoopConfig, OptimConfig
from medunifier_cli.run.log import Log
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.progress import Progress
from medunifier_cli.train.optim import (
    adamw,
    learning_rate,
    load_state_tensors,
    set_rate,
    state_tensors,
)
from medunifier_cli.train.stop import StopRequest, stop_on_signals

Values = dict[str, Tensor]


class Stage(Protocol):
    """What the loop needs from pre-training, fine-tuning or a prior."""

    steps: int
    """Optimiser steps of the whole run."""
    samples: str
    """What a batch holds, in the plural: the progress line counts these per second."""
    shown: tuple[str, ...]
    """Losses and monitors on the progress line, in order; all others are in `log.jsonl` alone."""

    @property
    def module(self) -> nn.Module:
        """What is trained. `step` gets it back as an argument, wrapped where there are several ranks."""

    def start(self) -> None:
        """Load the weights that a new run starts from. Not called where a checkpoint is resumed."""

    def scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter of `module`."""

    def batches(self, first_step: int) -> Iterator[list[Any]]:
        """For each step from `first_step` on, this rank's micro-batches."""

    def step(self, module: nn.Module, batch: Any, step: int, micro: int) -> tuple[Values, Values]:
        """Forward pass -> losses (with `total`) and monitors; their averages over ranks are global."""

    def validate(self, step: int) -> Mapping[str, float]:
        """Numbers on the validation split, the same on every rank; empty without such a split.

        Called outside of mixed precision: numbers are those that the restored weights give.
        """

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Weights and buffers that a checkpoint must hold."""

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that `checkpoint_tensors` returned."""

    def facts(self) -> dict[str, Any]:
        """JSON for the checkpoint: sources and hashes of weights that it does not hold."""


def fit(stage: Stage, run: Run, accelerator: Accelerator, train: LoopConfig, optim: OptimConfig) -> int:
    """Train `stage` to its last step, from the newest checkpoint of `run` where there is one.

    Returns:
        Steps done in this call.

    Raises:
        Stopped: a signal came; the checkpoint is saved.
        MuError: the loss is no longer a number.
    """
    # resumed before `prepare` wraps the module for several ranks: names in checkpoints are those of the bare
    # module, so a run may be resumed with another number of ranks
    optimizer = adamw(stage.module, optim, stage.scale)
    first = _resume(stage, run, accelerator, optimizer)
    if first >= stage.steps:
        return 0
    module, optimizer = accelerator.prepare(stage.module, optimizer)
    # `prepare` also replaces the `forward` of the module itself by one in mixed precision, and validation
    # calls that module: its numbers would be bf16's here, and fp32's where the same weights are restored.
    # Training does not need it, as every step below runs under `accelerator.autocast`.
    accelerator.unwrap_model(module, keep_fp32_wrapper=False)
    log = Log(run.log, first) if world.is_main() else None
    progress = Progress(
        stage.steps, "step", first=first, rate_unit=stage.samples, per_unit=train.global_batch, edges=True,
        hidden=not world.is_main(),
    )  # fmt: skip
    note, done = "", first
    # In each step: log, validate, save, stop, in this order.
    # - Log before save: a kill between the two leaves a line of a step that is in no checkpoint, which `Log`
    #   cuts off when the run is resumed. The other way round that step's line would be missing for good.
    # - Validate before save: validation may change what the checkpoint holds, such as the best epoch so far.
    # - Stop after save: nothing of the step is lost, and the same command continues with the next one.
    with (
        stop_on_signals() as stop, progress,
        # closed also where an exception holds this frame: its loader processes would delay the exit
        closing(stop.until_stopped(stage.batches(first), alone=world.size() == 1)) as batches,
    ):  # fmt: skip
        for step, micro_batches in enumerate(batches, first):
            started = time.monotonic()
            set_rate(optimizer, learning_rate(optim, step, stage.steps))
            # Seeded anew in each step, so that dropout depends on nothing drawn before: a resumed run draws
            # the same masks as the uninterrupted one, and so does one that validates more often.
            torch.manual_seed(draws.step_seed(train.seed, draws.DROPOUT, step, world.rank()))
            values = _optimise(stage, module, accelerator, optimizer, micro_batches, step, optim.clip_norm)
            done = step + 1
            last = done == stage.steps
            # The numbers of this step alone: an average since the last line would not survive a kill. The
            # first step is logged so that a wrong loss or a slow start shows at once.
            if done % train.log_every == 0 or last or done == 1:
                numbers = _numbers(values, run, done)
                numbers["lr"] = learning_rate(optim, step, stage.steps)
                if log is not None:
                    log.write("train", done, {**numbers, "seconds": round(time.monotonic() - started, 4)})
                accelerator.log({f"train/{name}": value for name, value in numbers.items()}, step=done)
                note = _line("train", numbers, stage.shown)
            progress.advance(done, note)
            if last or (train.valid_every and done % train.valid_every == 0):
                _validate(stage, accelerator, log, progress, done)
            # All ranks are asked: a signal reaches one of them first, and if that one left the loop, the
            # others would wait for it in the next collective operation.
            stopping = world.any_rank(bool(stop), accelerator.device) and not last
            if last or stopping or done % train.checkpoint_every == 0:
                _save(stage, run, accelerator, optimizer, done, train.keep)
            if stopping:
                raise _stopped(stop, done, stage.steps)
        if stop and done < stage.steps:  # stopped while it waited for the next batch
            if done > first and done % train.checkpoint_every:
                _save(stage, run, accelerator, optimizer, done, train.keep)
            raise _stopped(stop, done, stage.steps)
    return stage.steps - first


def _stopped(stop: StopRequest, done: int, steps: int) -> Stopped:
    """The error that ends a stopped run, whose checkpoint is saved."""
    name = stop.signal or "a signal"
    if not done:
        return Stopped(f"stopped by {name} before the first step was done; the same command starts it again")
    return Stopped(
        f"stopped by {name} after step {done:,} of {steps:,}; "
        "the checkpoint is saved, the same command resumes from it"
    )


def _optimise(
    stage: Stage, module: nn.Module, accelerator: Accelerator, optimizer: Any, micro_batches: list[Any],
    step: int, clip_norm: float,
) -> Values:  # fmt: skip
    """One optimiser step over its micro-batches -> losses and monitors, averaged over them."""
    module.train()  # in each step, as validation switches to evaluation mode
    sums: Values = {}
    for micro, batch in enumerate(micro_batches):
        world.tick()  # the batch is there: a rank that still waits for its own is behind
        last = micro + 1 == len(micro_batches)
        # gradients are averaged over ranks once, in the last backward pass, not once per micro-batch
        with nullcontext() if last else accelerator.no_sync(module):
            with accelerator.autocast():
                losses, monitors = stage.step(module, batch, step, micro)
            # Micro-batches hold equally many samples, so this is the mean over the global batch. Losses that
            # are means over tokens or rows (ITG, ITM) become a mean of the means of the micro-batches.
            accelerator.backward(losses["total"] / len(micro_batches))
        # tensors, not floats: `item()` would make the CPU wait for the GPU in every step, logged or not
        for name, value in {**losses, **monitors}.items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach() / len(
                micro_batches
            )
    if clip_norm:
        sums["grad_norm"] = accelerator.clip_grad_norm_(module.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return sums


def _numbers(values: Values, run: Run, done: int) -> dict[str, float]:
    """Averages over ranks as floats.

    Raises:
        MuError: the total is not finite.
    """
    # one exchange between ranks and one copy from the GPU for all numbers together
    stacked = world.mean(torch.stack([value.float() for value in values.values()]))
    numbers = dict(zip(values, stacked.tolist(), strict=True))
    if not math.isfinite(numbers["total"]):
        kept = store.steps(run.checkpoints)
        since = f"step {kept[-1]:,}'s checkpoint is kept" if kept else "no checkpoint was written"
        raise MuError(
            f"{run.folder}: the loss is not a number at step {done:,}; {since}; try a lower learning rate"
        )
    return numbers


def _line(event: str, numbers: Mapping[str, float], shown: Sequence[str]) -> str:
    """The event and the numbers that a stage shows, as one line."""
    return "  ".join([event, *(f"{name} {numbers[name]:.3f}" for name in shown if name in numbers)])


def _validate(stage: Stage, accelerator: Accelerator, log: Log | None, progress: Progress, done: int) -> None:
    # the bare module: DistributedDataParallel averages gradients, and there are none here
    stage.module.eval()
    with torch.no_grad():
        numbers = stage.validate(done)
    if numbers:
        if log is not None:
            log.write("valid", done, numbers)
        accelerator.log({f"valid/{name}": value for name, value in numbers.items()}, step=done)
        progress.say(f"step {done:,}/{stage.steps:,}  {_line('valid', numbers, stage.shown)}")


def _resume(stage: Stage, run: Run, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest whole checkpoint, or start the stage; returns the number of steps done."""
    checkpoint = store.newest(run.checkpoints)
    if checkpoint is None:
        stage.start()
        return 0
    before, now = checkpoint.facts["stage"], stage.facts()
    # facts on both sides alone: an older version may have written fewer of them
    for name in sorted(now.keys() & before.keys()):
        if now[name] != before[name]:
            raise CheckpointError(
                f"{run.folder}: {name} differs from what this run was trained with; "
                "give the run another name with --run"
            )
    try:
        stage.load_tensors(checkpoint.tensors["model"])
        load_state_tensors(stage.module, optimizer, checkpoint.tensors["optimizer"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{run.folder}: its checkpoint does not fit this recipe's model") from error
    if accelerator.scaler is not None and "scaler" in checkpoint.facts:
        accelerator.scaler.load_state_dict(checkpoint.facts["scaler"])
    # dropout is seeded in each step; this is for a stage or a head plugin that draws anywhere else
    state = checkpoint.tensors["rng"].get(f"cpu.{world.rank()}")
    if state is not None:
        torch.set_rng_state(state)
    return checkpoint.step


def _save(stage: Stage, run: Run, accelerator: Accelerator, optimizer: Any, done: int, keep: int) -> None:
    """Write a checkpoint on the main rank; the others wait, so that none runs ahead of a failed write."""
    # on every rank, before the main one goes to its files: it is an exchange between all of them
    rng = {f"cpu.{rank}": state for rank, state in enumerate(_rng_of_ranks(accelerator.device))}
    failure: CheckpointError | None = None
    if world.is_main():
        plain = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper has no state of its own
        tensors = {
            "model": stage.checkpoint_tensors(),
            "optimizer": state_tensors(stage.module, plain),
            "rng": rng,
        }
        facts: dict[str, Any] = {"stage": stage.facts(), "ranks": world.size(), "steps": stage.steps}
        if accelerator.scaler is not None:
            facts["scaler"] = accelerator.scaler.state_dict()
        try:
            store.save(run.checkpoints, store.Checkpoint(done, tensors, facts), keep)
        except CheckpointError as error:
            failure = error  # raised below: the other ranks wait there and must hear of it
    if world.any_rank(failure is not None, accelerator.device):
        raise failure or CheckpointError(f"{run.checkpoints}: the main rank could not write its checkpoint")


def _rng_of_ranks(device: torch.device) -> list[Tensor]:
    return [row.cpu() for row in world.collect_rows(torch.get_rng_state().to(device))]
