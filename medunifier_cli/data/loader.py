"""Batches for training and evaluation, read from shards by worker processes in a reproducible order.

Which samples a batch holds is decided here, as a pure function of (seed, epoch, index); a `SampleSource`
decides what a sample consists of. Torch's DataLoader provides the processes and nothing else: it neither
samples nor shuffles, so the number of ranks and workers changes no batch. Do not pass these iterators to
`accelerator.prepare`, which would divide them among the ranks a second time.

Shapes: B pairs, N tokens of all texts, H = W = `data.image_size`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from medunifier_cli.data.batch import Batch, PackedText, Sample
from medunifier_cli.data.order import SampleOrder
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.workers import LOOK, check_sockets, next_answer, start_worker, without_child_handler
from medunifier_cli.errors import MuError
from medunifier_cli.stopping import held

__all__ = [
    "SampleSource", "SplitSource", "collate", "eval_batches", "eval_workers", "micro_batch_size",
    "train_batches",
]  # fmt: skip

BATCHES_PER_WORKER = 4
"""Batches that make a loader process worth its start."""

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class SampleSource(Protocol[B_co]):
    """Samples by number, read a batch at a time; picklable. `SplitSource` is one."""

    @property
    def folder(self) -> Path:
        """Folder of the shards, for messages."""

    def __len__(self) -> int: ...

    def empty(self, count: int, /) -> Tensor | tuple[Tensor, ...]:
        """Uninitialised tensors for what is large of `count` samples: images, or features of them."""

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], room: Any, /) -> B_co:
        """The batch of these samples at these positions of the order; what is large in it in `room`."""


def micro_batch_size(global_batch: int, micro_batch: int, ranks: int, unit: str = "pairs") -> int:
    """How many samples one rank takes in one forward pass.

    Args:
        global_batch: samples of all ranks in one optimiser step.
        micro_batch: of the recipe; 0 divides the global batch by the ranks, without accumulation.
        unit: what is counted, in the plural.

    Raises:
        MuError: the global batch is not a whole number of passes of all ranks.
    """
    micro = micro_batch or max(1, global_batch // ranks)
    # A remainder would give some ranks fewer samples, and the mean over ranks would weight samples unequally.
    if global_batch % (micro * ranks):
        raise MuError(
            f"train.global_batch: {global_batch} is not a multiple of {micro} {unit} x {ranks} processes; "
            "change it, train.micro_batch or the number of processes"
        )
    return micro


def collate(samples: Sequence[Sample], positions: Sequence[int] | NDArray[np.int64]) -> Batch:
    """One batch of samples at their positions of the endless order."""
    return Batch(
        keys=[sample.key for sample in samples],
        image_B1HW=torch.from_numpy(np.stack([sample.image_HW for sample in samples])[:, None]),
        text=PackedText.of([sample.token_ids for sample in samples]),
        digest_B=torch.tensor([sample.text_digest for sample in samples], dtype=torch.int64),
        label_B=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        position_B=torch.as_tensor(np.asarray(positions, np.int64)),
    )


def eval_workers(workers: int, batches: int) -> int:
    """How many of a recipe's loader processes an evaluation starts, which ends after some batches.

    Args:
        workers: `data.workers`.
        batches: of this rank.
    """
    # a process costs as much to start and to end as some batches cost to decode
    return min(workers, batches // BATCHES_PER_WORKER)


def train_batches(
    source: SampleSource[B],
    *,
    seed: int,
    first_step: int,
    steps: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    workers: int,
) -> Iterator[list[B]]:
    """A list of micro-batches for each of the optimiser steps first_step, ..., steps - 1.

    Step s uses positions [s G, (s + 1) G) of the endless order, G the global batch. They are cut into
    consecutive blocks of micro_batch * world positions, of which rank r takes the r-th consecutive
    micro_batch. A block may cross epochs. `micro_batch` 0 is G / world.

    Raises:
        MuError: G does not divide evenly, a damaged sample (names shard and key), or a worker died.
    """
    micro = micro_batch_size(global_batch, micro_batch, world)
    accumulation = global_batch // (micro * world)
    # The ranks alternate (rank 0, rank 1, rank 0, ...) instead of taking one long block each, so that pass
    # m covers the same positions however many ranks share it. ITC and ITM contrast the pairs of one pass
    # over all ranks: 2 ranks x 64 pairs see the same candidates as 1 rank x 128.
    starts = (
        step * global_batch + m * micro * world + rank * micro
        for step in range(first_step, steps)
        for m in range(accumulation)
    )
    order = SampleOrder(len(source), seed)
    requests = (
        _Request(order.indices(start, start + micro), np.arange(start, start + micro)) for start in starts
    )
    step: list[B] = []
    for batch in _load(source, requests, workers):
        step.append(batch)
        if len(step) == accumulation:
            yield step
            step = []


def eval_batches(
    source: SampleSource[B], *, batch_size: int, rank: int, world: int, workers: int, batches: int = 0,
    first: int = 0,
) -> Generator[tuple[B, Tensor], None, None]:  # fmt: skip
    """Every sample once and in order, with the same number of batches on every rank.

    Batch b covers samples [b B W, (b + 1) B W), B = `batch_size` pairs per rank, W = `world`; rank r takes
    the r-th consecutive B of them. Rows past the end repeat the last sample.

    Args:
        batches: stop after this many batches; 0 reads the whole split.
        first: begin with this sample instead of sample 0, as if the split began there.

    Returns:
        Batch and mask_B: False on repeated rows. `position_B` is the sample's number in the split.
    """
    n, block = len(source), batch_size * world
    count = -(-(n - first) // block)
    starts = [first + b * block + rank * batch_size for b in range(min(count, batches) if batches else count)]
    # Full batches on every rank, the last ones padded by repetition: a rank with fewer batches than the
    # others would leave them waiting in the next collective.
    rows = (np.minimum(np.arange(start, start + batch_size), n - 1) for start in starts)
    requests = (_Request(samples, samples) for samples in rows)
    with closing(_load(source, requests, workers)) as loaded:
        for start, batch in zip(starts, loaded, strict=True):
            yield batch, torch.arange(start, start + batch_size) < n


@dataclass(frozen=True)
class _Request:
    """Which samples make a batch, and their positions in the order, int64 [B] each."""

    samples: NDArray[np.int64]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class _Failure:
    """A user-facing error from a worker. Raised there, torch would wrap it in a traceback of its own."""

    error: type[MuError]
    message: str


class _Reader(Dataset[Any]):
    """Reads the batches that are requested. Lives in the workers, or in this process without workers."""

    def __init__(self, source: SampleSource[Any]) -> None:
        self.source = source

    def __getitem__(self, request: _Request) -> Any:
        room = self.source.empty(len(request.samples))
        large = [tensor for tensor in (room if isinstance(room, tuple) else (room,)) if tensor.numel()]
        in_worker = get_worker_info() is not None
        if in_worker:
            # Moved to shared memory while still empty, so that images are decoded where the training process
            # reads them. Torch shares every tensor that leaves a worker, but copies those that are not
            # shared yet: 3.2 MB more per batch of 64 images of 224 px.
            for tensor in large:
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        try:
            batch = self.source.read(request.samples, request.positions, room)
        except MuError as error:
            return _Failure(type(error), str(error))
        # Torch sends each tensor of a batch as a shared file of its own, with a descriptor to pass and a
        # memory map to make. The five small ones travel through the pipe as arrays instead.
        if not in_worker:
            return batch
        return _with_tensors(batch, lambda t: t if any(t is shared for shared in large) else t.numpy())


def _with_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a dataclass with `change` applied to every tensor and array in it, at any depth."""
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _with_tensors(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **changed)
    return value


def _load(source: SampleSource[B], requests: Iterable[_Request], workers: int) -> Generator[B, None, None]:
    if workers:
        # Set before the fork: the tokenizers library would print a warning in every worker otherwise,
        # although no worker tokenizes.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        check_sockets()
    loader: DataLoader[Any] = DataLoader(
        _Reader(source),
        # Our requests are whole batches already; None turns off torch's own batching.
        batch_size=None,
        sampler=requests,
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=start_worker,
        # DataLoader draws a seed for its workers when it starts. With a generator of its own it does not
        # advance the global one, which would make the number of loaders change dropout and weights.
        generator=torch.Generator(),
        timeout=LOOK if workers else 0,
    )
    answers: Any = None
    try:
        with without_child_handler(), held():  # until each worker has set how it takes signals
            answers = iter(loader)
        while True:
            answer = next_answer(answers, source.folder)
            if answer is None:
                return
            if isinstance(answer, _Failure):
                raise answer.error(answer.message)
            yield _with_tensors(answer, torch.as_tensor) if workers else answer
    except (RuntimeError, ConnectionError) as error:
        # Torch has no exception class for a dead worker, only this text. A connection fails where a batch was
        # finished, but its worker died before the images were fetched from it.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise MuError(
            f"{source.folder}: a loader process died, usually because memory or shared memory (/dev/shm) "
            "ran out; lower data.workers"
        ) from error
    finally:
        # Torch ends the workers when the iterator is collected, but an exception on its way up holds it: the
        # command would end first, and then wait for processes that nobody has told to stop.
        end = getattr(answers, "_shutdown_workers", None)
        if end is not None:
            end()


def _unchanged(answer: Any) -> Any:
    """Replaces torch's collate function; a named function, since a lambda does not pickle."""
    return answer
