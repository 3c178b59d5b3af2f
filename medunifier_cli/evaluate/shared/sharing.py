"""Share the work of a verb that measures over ranks: the main one runs it, the others compute their part.

A verb is written as for one process, and the main rank alone runs it: it opens data, reads caches, ranks,
prints and writes. What takes long it hands out: the model is loaded by `everywhere`, and samples are encoded,
decoded or drawn by `in_order` or `each`. There all ranks compute their part, and the others wait otherwise.
Samples come in the same blocks as in one process, so no number depends on how many ranks there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from medunifier_cli.distributed import world
from medunifier_cli.distributed.group import gathering
from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.shared.exchange import (
    END,
    FAILED,
    PART,
    bring,
    broadcast,
    pickled,
    receive,
    remember,
    unpickled,
)
from medunifier_cli.run.processors import limit_threads, ranks_here
from medunifier_cli.stopping import installed
from medunifier_cli.terminal.say import say

T = TypeVar("T")
Item = TypeVar("Item")

Share = Callable[[int, int], Generator[T | None, None, None]]
"""(rank, ranks) -> the parts number rank, rank + ranks, ... of the work; picklable.

All ranks get equally many: None where there is no such part any more."""
LIMIT = 3600.0
"""Seconds after which a rank ends all that is silent, or not done with a part for which the others wait: far
longer than any part takes, as one that fails or dies is noticed at once."""
MARGIN = 60.0
"""Seconds by which torch's time-out is longer, which cannot say who hangs."""


@dataclass
class _Crew:
    """What this process knows of the ranks that share the work."""

    leads: bool = False
    """It is the main rank of several, and runs the verb."""
    share: object = None
    """Stands for the share that the ranks are at; None between two."""


_crew = _Crew()


def on_all_ranks(verb: Callable[[], object]) -> None:
    """Run a verb on the main rank of the group that this process belongs to; the others compute for it.

    Raises:
        MuError: of the verb, on the main rank; or the group cannot be formed.
    """
    with gathering():
        # gloo on GPUs as well: what is exchanged is written or ranked on the CPU
        dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT + MARGIN))
    if cards := torch.cuda.device_count():
        # a task of `srun --gpus-per-task=1` sees its own card alone
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % cards)
    world.join(LIMIT, setting="")
    if (share := limit_threads(ranks_here())) and not cards and world.is_main():
        say(f"{share}; OMP_NUM_THREADS sets another number")
    if world.is_main():
        _crew.leads = True
        try:
            with world.alone():
                verb()
            _send(None)
        finally:
            _crew.leads = False
    else:
        while (task := _received()) is not None:
            task()


def everywhere(make: Callable[..., T], *arguments: Any) -> T:
    """`make(*arguments)` on all ranks; it and the networks in it are known to them all from then on.

    Args:
        make, arguments: picklable.

    Raises:
        MuError: it failed on some rank; the others compute on for what the main rank does instead.
    """
    if not _crew.leads:
        return make(*arguments)
    _send(partial(_follow_load, make, *arguments))
    with world.alone(False):
        return _load(make, *arguments)


def known_everywhere(value: T) -> T:
    """The value itself, which all ranks get once: what is handed out later holds a reference to it.

    Args:
        value: of one of our classes, and not changed from here on; picklable.
    """
    known: T = everywhere(_itself, value)
    return known


def _itself(value: T) -> T:
    return value


def each(compute: Callable[[Item], T], items: Sequence[Item]) -> Generator[T, None, None]:
    """`compute` of each item, in order; the ranks take turns.

    Args:
        compute, items: picklable; results are not None.

    Raises:
        MuError: of the first item that cannot be computed.
    """
    return in_order(partial(_turns, compute, items))


def in_order(share: Share[T]) -> Generator[T, None, None]:
    """All parts of a work in order, of which each rank computes its own; a process of its own all of them.

    Raises:
        MuError: of the first part that cannot be computed.
    """
    if not _crew.leads:
        with closing(share(0, 1)) as parts:
            yield from (part for part in parts if part is not None)
        return
    _send(partial(_compute_share, share))
    token = _crew.share = object()
    with world.alone(False):
        ranks = world.size()
    try:
        with closing(share(0, ranks)) as parts:
            over = False
            while not over:
                if _crew.share is not token:
                    raise RuntimeError("another share has begun before the end of this one")
                own = _next(parts)
                heads, others = bring(own[0])
                if over := _is_over(heads):
                    _crew.share = None
                yield from _results([own, *zip([kind for kind, _ in heads[1:]], others, strict=True)])
    except GeneratorExit:  # given up, for example to begin anew on another disk
        if _crew.share is token:
            _leave_share()
        raise


def share_of_rank(count: int, multiple: int = 1) -> int:
    """How many of `count` samples each rank gets if all get as many, rounded up to a multiple."""
    with world.alone(not _crew.leads):
        ranks = world.size()
    return max(1, -(-count // (ranks * multiple))) * multiple


def _results(round_: Sequence[tuple[int, Any]]) -> Iterator[Any]:
    """The parts of one round, rank after rank."""
    for kind, value in round_:
        if kind == FAILED:
            raise value
        if kind != round_[0][0]:
            raise RuntimeError("the ranks have unequal numbers of parts")
        if value is not None:
            yield value


def _turns(
    compute: Callable[[Item], T], items: Sequence[Item], rank: int, ranks: int
) -> Generator[T | None, None, None]:
    for start in range(0, len(items), ranks):
        own = start + rank
        yield compute(items[own]) if own < len(items) else None


def _compute_share(share: Share[Any]) -> None:
    """On another rank than the main one: compute this rank's parts."""
    with closing(share(world.rank(), world.size())) as parts:
        while True:
            kind, value = _next(parts)
            heads, _ = bring(kind, b"" if kind == END else pickled(value))
            if _is_over(heads):
                return


def _next(parts: Iterator[Any]) -> tuple[int, Any]:
    try:
        return PART, next(parts)
    except StopIteration:
        return END, None
    except MuError as error:
        return FAILED, error


def _is_over(heads: Sequence[tuple[int, int]]) -> bool:
    """Whether a round is the last one of its share, by what all ranks know of it."""
    return heads[0][0] == END or any(kind == FAILED for kind, _ in heads)


def _leave_share() -> None:
    """On the main rank: let the others leave a share that is not at its end."""
    _crew.share = None
    if not installed():  # else a signal has come, and ends them all
        bring(END)


def _load(make: Callable[..., T], *arguments: Any) -> T:
    result: T | None = None
    own: MuError | None = None
    try:
        result = make(*arguments)
    except MuError as error:
        own = error
    problems = world.exchange(None if own is None else str(own))
    if own is not None:
        raise own
    for rank, problem in enumerate(problems):
        if problem is not None:
            raise MuError(f"rank {rank}: {problem}")
    if type(result).__module__.startswith("medunifier_cli."):
        remember([result])
    for network in _networks(result):
        remember(network.modules())
    return result  # type: ignore[return-value]


def _follow_load(make: Callable[..., Any], *arguments: Any) -> None:
    with suppress(MuError):  # the main rank has it too, and decides
        _load(make, *arguments)


def _networks(value: Any) -> Iterator[nn.Module]:
    """The networks in a result: dataclasses, tuples and lists of them at any depth."""
    if isinstance(value, nn.Module):
        yield value
    elif is_dataclass(value):
        for one in fields(value):
            yield from _networks(getattr(value, one.name))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _networks(one)


def _send(task: Callable[[], None] | None) -> None:
    """On the main rank: what the others do next; None ends them."""
    if _crew.share is not None:
        _leave_share()
    content = pickled(task)
    with world.alone(False):
        # by the store: they may wait for hours, in which no collective operation may run out of time
        world.exchange(len(content))
        broadcast(content)


def _received() -> Callable[[], None] | None:
    task: Callable[[], None] | None = unpickled(receive(world.exchange(0)[0]))
    return task
