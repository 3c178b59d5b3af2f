"""Profile a few steps of a stage: a trace for a browser, and which parts and kernels take most of a step."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from medunifier_cli.errors import MuError
from medunifier_cli.files import atomic_folder
from medunifier_cli.recipe.schema_train import LoopConfig, OptimConfig
from medunifier_cli.train.finite import Counts, Skips
from medunifier_cli.train.loop import begin_step, optimise, prepare
from medunifier_cli.train.optim import adamw, learning_rate
from medunifier_cli.train.stage import Stage

WARM_UP, STEPS = 5, 3
"""Steps before the profiler, in which memory is allocated, kernels chosen and parts compiled; and with it."""
LOG_LEVEL, QUIET = "KINETO_LOG_LEVEL", "99"
"""Variable of PyTorch's profiler, which otherwise reports that it starts, and that a CPU is no GPU."""
PREFIX = "mu: "
"""Begins the name of a range that is ours, as a trace shows it."""
REST, WAITING, UPDATE = "the rest", "waiting for data", "optimiser"
BACKWARD = "autograd::engine::evaluate_function"
"""Begins the name of what autograd runs for one operation of the forward pass."""

Part = tuple[Any, str, str]
"""Owner of a method, name of the method, and what it is called in the table."""


class Row(NamedTuple):
    """One part or kernel."""

    name: str
    milliseconds: float
    """Of a step."""
    share: float
    """Of all that was measured, in [0, 1]."""
    most: str = ""
    """The operation that takes most of a part."""


@dataclass(frozen=True)
class Profile:
    """What was measured, and where the trace is."""

    device: str
    """`cuda` or `cpu`, whose time it is."""
    steps: int
    seconds: float
    """Of a step, by the clock, while the profiler watched."""
    parts: Sequence[Row]
    """The largest first."""
    kernels: Sequence[Row]
    """The largest first; on a CPU operations of PyTorch."""
    trace: Path


def profile_steps(
    stage: Stage, accelerator: Accelerator, train: LoopConfig, optim: OptimConfig, parts: Sequence[Part],
    trace: Path, watched: bool,
) -> Profile | None:  # fmt: skip
    """Train a stage for a few steps, without log, validation or checkpoint; its weights change.

    Args:
        parts: methods of the stage's module, named; time in one that is inside another counts for the inner.
        trace: file to write, for chrome://tracing or Perfetto; alone in its folder, which is replaced.
        watched: whether this rank is profiled; the others only take part.

    Returns:
        What was measured, on the rank that is profiled.

    Raises:
        MuError: the stage has no step, or the file cannot be written.
    """
    stage.start()
    optimizer = adamw(stage.module, optim, stage.scale)
    skips = Skips(
        stage.module, accelerator.device, train.skip_limit, accelerator.scaler is not None, Counts()
    )
    module, optimizer = prepare(stage, accelerator, optimizer)
    recorded = min(STEPS, stage.steps)
    warm = min(WARM_UP, stage.steps - recorded)
    taken, on_gpu = 0, accelerator.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with closing(_numbered(stage.batches(0))) as batches, named([*parts, (optimizer, "step", UPDATE)]):

        def run(steps: int) -> None:
            nonlocal taken
            for step, micro_batches in islice(batches, steps):
                begin_step(optimizer, learning_rate(optim, step, stage.steps), train.seed, step)
                optimise(stage, module, accelerator, optimizer, micro_batches, step, optim.clip_norm, skips)
                taken += 1
            if on_gpu:
                torch.cuda.synchronize()

        run(warm)
        if not watched:
            run(recorded)
            return None
        os.environ.setdefault(LOG_LEVEL, QUIET)
        with profile(activities=activities) as profiler:
            run(recorded)
    if taken <= warm:
        raise MuError("there is no step to profile: the recipe's train.steps or train.epochs give none")
    with atomic_folder(trace.parent) as unfinished:
        profiler.export_chrome_trace(str(unfinished / trace.name))
    events = [event for event in profiler.events() or [] if not event.is_async]
    return _summary(events, on_gpu, taken - warm, trace)


@contextmanager
def named(parts: Sequence[Part]) -> Iterator[None]:
    """Have each method that is named be a range of the profiler while the block lasts."""
    held = []
    try:
        for owner, method, name in parts:
            had = method in vars(owner)
            real = getattr(owner, method)

            def ranged(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
                with record_function(PREFIX + _name):
                    return _real(*args, **kwargs)

            object.__setattr__(owner, method, ranged)
            held.append((owner, method, real if had else None))
        yield
    finally:
        for owner, method, before in reversed(held):
            object.__delattr__(owner, method)
            if before is not None:
                object.__setattr__(owner, method, before)


def _numbered(batches: Iterator[Any]) -> Generator[tuple[int, Any], None, None]:
    """Batches with the numbers of their steps; closed with it, as a loader has processes to end."""
    try:
        for step in count():
            with record_function(PREFIX + WAITING):
                micro_batches = next(batches, None)
            if micro_batches is None:
                return
            yield step, micro_batches
    finally:
        if isinstance(batches, Generator):
            batches.close()


def _summary(events: Sequence[FunctionEvent], on_gpu: bool, steps: int, trace: Path) -> Profile:
    def own(event: FunctionEvent) -> float:
        """Microseconds of the event without what it calls; of kernels where there are some."""
        if on_gpu:
            return float(sum(kernel.duration for kernel in event.kernels))
        return float(event.self_cpu_time_total)

    parts: Counter[str] = Counter()
    inner: dict[str, Counter[str]] = defaultdict(Counter)
    kernels: Counter[str] = Counter()
    for event, part in parts_of(events):
        parts[part] += own(event)  # type: ignore[assignment]
        inner[part][event.name] += own(event)  # type: ignore[assignment]
        if on_gpu:
            for kernel in event.kernels:
                kernels[kernel.name] += kernel.duration
        elif not event.name.startswith((PREFIX, BACKWARD)):
            kernels[event.name] += own(event)  # type: ignore[assignment]
    whole = max(sum(parts.values()), 1e-9)
    most = {name: operations.most_common(1)[0][0] for name, operations in inner.items()}
    start = min((event.time_range.start for event in events), default=0)
    end = max((event.time_range.end for event in events), default=0)
    return Profile(
        device="cuda" if on_gpu else "cpu", steps=steps, seconds=(end - start) / steps / 1e6,
        parts=_rows(parts, steps, whole, most), kernels=_rows(kernels, steps, whole, {}), trace=trace,
    )  # fmt: skip


def _rows(taken: Counter[str], steps: int, whole: float, most: Mapping[str, str]) -> list[Row]:
    return [
        Row(name, micros / steps / 1000, micros / whole, most.get(name, "").removeprefix(PREFIX))
        for name, micros in taken.most_common()
        if micros
    ]


def parts_of(events: Sequence[FunctionEvent]) -> Iterator[tuple[FunctionEvent, str]]:
    """Each event with the part it belongs to, `<name>` or `<name>, backward`.

    Forward it is the innermost range that is ours. Autograd numbers operations in the order in which they
    come, and the backward pass of one has its number: it belongs to the part whose operations had the numbers
    around it.
    """
    numbered: list[tuple[int, str]] = []
    places: dict[int, tuple[FunctionEvent | None, str]] = {}
    for event in events:
        place = _place_of(event)
        places[id(event)] = place
        if event.sequence_nr >= 0 and place[0] is None:
            numbered.append((event.sequence_nr, place[1]))
    numbered.sort(key=lambda pair: pair[0])
    numbers = [number for number, _ in numbered]
    for event in events:
        backward, part = places[id(event)]
        if backward is not None:
            index = bisect_right(numbers, backward.sequence_nr) - 1
            part = f"{numbered[index][1] if index >= 0 and backward.sequence_nr >= 0 else REST}, backward"
        yield event, part


def _place_of(event: FunctionEvent) -> tuple[FunctionEvent | None, str]:
    """What autograd runs that an event is part of, or None and the name of the part."""
    above: FunctionEvent | None = event
    while above is not None:
        if above.name.startswith(BACKWARD):
            return above, ""
        if above.name.startswith(PREFIX):
            return None, above.name.removeprefix(PREFIX)
        above = above.cpu_parent
    return None, REST
