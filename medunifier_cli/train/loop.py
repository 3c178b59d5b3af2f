"""The training loop of every stage: when to log, validate, save and stop. A stage computes the loss.

Resumable at any step: batches and the learning rate are functions of the step, random numbers of (seed, step,
rank), and everything else is in the checkpoint. A resumed run equals the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from medunifier_cli.distributed import draws, world
from medunifier_cli.errors import Stopped
from medunifier_cli.recipe.schema_train import LoopConfig, OptimConfig
from medunifier_cli.run.log import Log
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.progress import Progress
from medunifier_cli.train.compiling import as_written, tell_of_compiler
from medunifier_cli.train.finite import Skips, counts_of
from medunifier_cli.train.optim import adamw, learning_rate, leave_unchanged, set_rate
from medunifier_cli.train.saving import Saver, resume
from medunifier_cli.train.stage import CHANCE, Stage, Values
from medunifier_cli.train.stop import AnyStop, TrainingStop, ValidationEndedError, stop_on_signals
from medunifier_cli.train.throughput.pace import Pace, pace_line
from medunifier_cli.train.trackers.tracking import Tracking

WARM, DOUBTED = 50, 100
"""Steps between which a stage is asked whether its numbers look wrong: early enough to stop a run that would
take days, and late enough for codebooks, which nearly all pass through a state of a single code."""


def fit(stage: Stage, run: Run, accelerator: Accelerator, train: LoopConfig, optim: OptimConfig) -> int:
    """Train `stage` to its last step, from the newest checkpoint of `run` where there is one.

    Returns:
        Steps done in this call.

    Raises:
        Stopped: a signal came; the checkpoint is saved.
        NotFiniteError: loss, gradients or weights are no longer finite; the last good checkpoint is kept.
    """
    # before `prepare` wraps the module: checkpoints have the bare names, whatever the number of ranks
    optimizer = adamw(stage.module, optim, stage.scale)
    first, facts, meant = resume(stage, run, accelerator, optimizer, train.keep)
    validated = facts.get("validated", True)
    if validated and (first >= stage.steps or stage.over()):
        return 0
    module, optimizer = prepare(stage, accelerator, optimizer)
    log = Log(run.log, first, validated) if world.is_main() else None
    tracking, progress = Tracking(run, train, log, first), _progress(stage, train.global_batch, first)
    counts = counts_of(facts, str(run.folder))
    skips = Skips(stage.module, accelerator.device, train.skip_limit, accelerator.scaler is not None, counts)
    saver = Saver(stage, run, accelerator, optimizer, train, skips, counts, meant, progress, first, validated)
    numbers, stops = dict[str, float](), AnyStop(accelerator.device, first)
    pace = Pace(stage, train.global_batch, accelerator.device)
    done, logged, doubted, last = first, first, False, first >= stage.steps
    # In each step: log, validate, save, stop, in this order.
    # - Log before save: a kill between the two leaves a line of a step that is in no checkpoint, which `Log`
    #   cuts off when the run is resumed. The other way round that step's line would be missing for good.
    # - Validate before save: validation may change what the checkpoint holds, such as the best epoch so far.
    # - Stop after save: nothing of the step is lost, and the same command continues with the next one.
    with (
        closing(saver), stop_on_signals() as stop, tracking, progress,  # the saver last: Ctrl-C ends its wait
        # closed also where an exception holds this frame: its loader processes would delay the exit
        closing(stop.until_stopped(stage.batches(first), alone=world.size() == 1)) as batches,
    ):  # fmt: skip
        if not validated:  # made up for first, so that the run ends as if no signal had come
            last = _make_up(stage, accelerator, log, tracking, progress, saver, first, stop) or last
        for step, micro_batches in enumerate(() if last else pace.timed(batches), first):
            rate = learning_rate(optim, step, stage.steps)
            begin_step(optimizer, rate, train.seed, step)
            values = optimise(
                stage, module, accelerator, optimizer, micro_batches, step, optim.clip_norm, skips
            )
            done = step + 1
            last = done == stage.steps
            # The numbers of this step alone: an average since the last line would not survive a kill. The
            # first step is logged so that a wrong loss or a slow start shows at once.
            if done % train.log_every == 0 or last or done in (1, DOUBTED):
                numbers = {**_numbers(values), "lr": rate, **skips.read().shown()}
                logged = done
                _log(log, tracking, done, numbers, pace.read())
                doubted = doubted or _doubt(stage, numbers, done, progress)
                saver.look(done)
            progress.advance(done, _note(numbers, pace.stepped(), stage.shown, logged, done))
            due = last or bool(train.valid_every and done % train.valid_every == 0)
            validated = not due or _validate(stage, accelerator, log, tracking, progress, done, stop)
            last = last or (due and validated and _is_over(stage, done, progress))
            # All ranks are asked: a signal reaches one first, and if that one left the loop, the others would
            # wait for it. As if a checkpoint has failed. Of a validation that it ended they know already.
            stopping = not validated or stops(bool(stop) or saver.failed, done)
            if last or stopping or saver.due or done % train.checkpoint_every == 0:
                saver.save(done, now=last or stopping, validated=validated)
            if stopping:
                raise _stopped(stop, done, stage.steps)
            if last:
                break
        if stop and not last:  # stopped while it waited for the next batch
            saver.save(done, now=True, validated=validated)
            raise _stopped(stop, done, stage.steps)
    return done - first


def _doubt(stage: Stage, numbers: Mapping[str, float], done: int, progress: Progress) -> bool:
    """Warn if the first steps show that the run will fail; returns whether it did."""
    doubt = stage.doubt(numbers) if WARM <= done <= DOUBTED else ""
    if doubt:
        progress.say(f"warning: step {done}: {doubt}")
    return bool(doubt)


def _make_up(
    stage: Stage, accelerator: Accelerator, log: Log | None, tracking: Tracking, progress: Progress,
    saver: Saver, first: int, stop: TrainingStop,
) -> bool:  # fmt: skip
    """Validate and save the step at which a signal had ended the validation; whether training ends there."""
    if not _validate(stage, accelerator, log, tracking, progress, first, stop):
        raise _stopped(stop, first, stage.steps)
    saver.save(first, now=True)  # whole before loader processes start, which would keep files of it open
    return _is_over(stage, first, progress)


def _is_over(stage: Stage, done: int, progress: Progress) -> bool:
    """Whether the validations end training at this step, before its last one; says why."""
    why = stage.over() if done < stage.steps else ""
    if why:
        progress.say(f"step {done:,}/{stage.steps:,}  training ends: {why}")
    return bool(why)


def prepare(stage: Stage, accelerator: Accelerator, optimizer: Any) -> tuple[nn.Module, Any]:
    """The module and its optimiser as Accelerate wraps them for the ranks and the precision of this run."""
    module, optimizer = accelerator.prepare(stage.module, optimizer)
    # `prepare` also replaces the `forward` of the module itself by one in mixed precision, and validation
    # calls that module: its numbers would be bf16's here, and fp32's where the same weights are restored.
    # Training does not need it, as every step runs under `accelerator.autocast`.
    accelerator.unwrap_model(module, keep_fp32_wrapper=False)
    return module, optimizer


def _progress(stage: Stage, per_step: int, first: int) -> Progress:
    return Progress(
        stage.steps, "step", first=first, rate_unit=stage.samples, per_unit=per_step, edges=True,
        hidden=not world.is_main(),
    )  # fmt: skip


def _stopped(stop: TrainingStop, done: int, steps: int) -> Stopped:
    """The error that ends a stopped run, whose checkpoint is saved."""
    name = stop.signal or "a signal"
    if not done:
        return Stopped(f"stopped by {name} before the first step was done; the same command starts it again")
    return Stopped(
        f"stopped by {name} after step {done:,} of {steps:,}; "
        "the checkpoint is saved, the same command resumes from it"
    )


def begin_step(optimizer: Any, rate: float, seed: int, step: int) -> None:
    """Set the learning rate, and seed what a step draws."""
    set_rate(optimizer, rate)
    # Seeded anew in each step, so that dropout depends on nothing drawn before: a resumed run draws the same
    # masks as the uninterrupted one, and so does one that validates more often.
    torch.manual_seed(draws.step_seed(seed, draws.DROPOUT, step, world.rank()))


@tell_of_compiler
def optimise(
    stage: Stage, module: nn.Module, accelerator: Accelerator, optimizer: Any, micro_batches: list[Any],
    step: int, clip_norm: float, skips: Skips,
) -> Values:  # fmt: skip
    """One optimiser step over its micro-batches -> losses and monitors, averaged over them."""
    module.train()  # in each step, as validation switches to evaluation mode
    skips.begin()
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
            accelerator.backward(losses["total"] * skips.factor(losses["total"]) / len(micro_batches))
        # tensors, not floats: `item()` would make the CPU wait for the GPU in every step, logged or not
        for name, value in {**losses, **monitors}.items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach() / len(
                micro_batches
            )
    if clip_norm:
        norm = sums["grad_norm"] = accelerator.clip_grad_norm_(module.parameters(), clip_norm)
    else:
        accelerator.unscale_gradients()
        norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    skip = skips.decide(norm)
    if accelerator.scaler is None:  # fp16's scaler gives the optimiser a flag of its own, from the same norm
        leave_unchanged(getattr(optimizer, "optimizer", optimizer), skip)
    optimizer.step()
    optimizer.zero_grad()
    skips.end()
    return sums


def _numbers(values: Values) -> dict[str, float]:
    """Averages over ranks as floats, but those that are not finite, as in a skipped step: JSON has none."""
    # one exchange between ranks and one copy from the GPU for all numbers together
    stacked = world.mean(torch.stack([value.float() for value in values.values()]))
    numbers = dict(zip(values, stacked.tolist(), strict=True))
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _log(
    log: Log | None, tracking: Tracking, done: int, numbers: Mapping[str, float],
    times: Mapping[str, float],
) -> None:  # fmt: skip
    """Write the numbers of a step to the log and to the trackers."""
    if log is not None:
        log.write("train", done, {**numbers, **times})
    named = {f"train/{name}": value for name, value in numbers.items()}
    tracking.log("train", done, named | {f"pace/{name}": value for name, value in times.items()})


def _note(
    numbers: Mapping[str, float], times: Mapping[str, float], names: Sequence[str], logged: int, done: int
) -> str:
    """For the progress line, which shows the numbers of the last line of the log until the next one: it says
    of which step they are."""
    if not numbers:
        return ""
    event = "train" if logged == done else f"train at step {logged:,}"
    return f"{_line(event, numbers, names)}  {pace_line(times)}"


def _line(event: str, numbers: Mapping[str, float], shown: Sequence[str]) -> str:
    """The event and the numbers that a stage shows, as one line."""
    known = [name for name in shown if name in numbers]
    chance = {name: f" (chance {numbers[name + CHANCE]:.3f})" for name in known if name + CHANCE in numbers}
    return "  ".join([event, *(f"{name} {numbers[name]:.3f}{chance.get(name, '')}" for name in known)])


def _validate(
    stage: Stage, accelerator: Accelerator, log: Log | None, tracking: Tracking, progress: Progress,
    done: int, stop: TrainingStop,
) -> bool:  # fmt: skip
    """Validate and log; False, without a line in the log, where a signal ended it: on all ranks alike."""

    def agree(flag: bool) -> bool:
        return world.any_rank(flag, accelerator.device)

    # the bare module: DistributedDataParallel averages gradients, and there are none here
    stage.module.eval()
    state = torch.get_rng_state()
    try:
        with torch.no_grad(), as_written():
            numbers = stage.validate(done, stop.watch(world.size() == 1, agree))
    except ValidationEndedError:
        torch.set_rng_state(state)  # it is made up for from the beginning
        return False
    if numbers:
        if log is not None:
            log.write("valid", done, numbers)
        tracking.log("valid", done, {f"valid/{name}": value for name, value in numbers.items()})
        tracking.log_samples(done)
        progress.say(f"step {done:,}/{stage.steps:,}  {_line('valid', numbers, stage.shown)}")
    return True
