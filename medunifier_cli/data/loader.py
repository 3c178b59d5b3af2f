"""From shards to batches, at places that are a pure function of (seed, epoch, position).

A stage brings a `Source`: what a sample is made of is its business, which samples are read is decided here.
Built on torch's DataLoader for its processes only: what each worker reads is listed by us, place by place,
so that ranks and workers change nothing. Never hand these to `accelerator.prepare`.

Shapes: B pairs, N tokens of all texts, H = W = `data.image_size`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from medunifier_cli.data.contract import Batch, PackedText, Sample
from medunifier_cli.data.order import SampleOrder
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.errors import MuError


class Placed(Protocol):
    """A batch that knows its places; `contract.Batch` is one."""

    @property
    def place_B(self) -> Tensor: ...


P = TypeVar("P", bound=Placed)
P_co = TypeVar("P_co", bound=Placed, covariant=True)


class OnItsWay(Protocol[P_co]):
    """What a worker sends: pickles, with its tensors in shared memory."""

    def batch(self, places: NDArray[np.int64], /) -> P_co:
        """As a step takes it."""


class Source(Protocol[P_co]):
    """Samples by number; picklable. `SplitSource` is one."""

    @property
    def folder(self) -> Path:
        """Where they come from, for messages."""

    def __len__(self) -> int: ...

    def room(self, count: int, /) -> Tensor:
        """An empty tensor for so many samples."""

    def gather(self, samples: NDArray[np.int64], room: Tensor, /) -> OnItsWay[P_co]:
        """Samples by number, read into `room`."""


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


def collate(samples: Sequence[Sample], places: Sequence[int] | NDArray[np.int64]) -> Batch:
    """Samples at their places of the endless order as one batch; images travel as one uint8 tensor."""
    images = torch.from_numpy(np.stack([sample.image_HW for sample in samples])[:, None])
    ids = [token for sample in samples for token in sample.token_ids]
    return Batch(
        keys=[sample.key for sample in samples],
        image_B1HW=images,
        text=PackedText(
            torch.tensor(ids, dtype=torch.int64),
            torch.tensor([len(sample.token_ids) for sample in samples], dtype=torch.int64),
        ),
        digest_B=torch.tensor([sample.text_digest for sample in samples], dtype=torch.int64),
        label_B=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        place_B=torch.as_tensor(np.asarray(places, np.int64)),
    )


def train_batches(
    source: Source[P],
    *,
    seed: int,
    first_step: int,
    steps: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    workers: int,
) -> Iterator[list[P]]:
    """One list of micro-batches for each of the optimiser steps first_step, ..., steps - 1.

    Step s uses places [s G, (s + 1) G) of the endless order, G the global batch, cut into consecutive
    stretches of micro_batch * world places, of which rank r takes its r-th consecutive micro_batch. A stretch
    may cross epochs. `micro_batch` 0 is G / world.

    Raises:
        MuError: G does not divide evenly, a damaged sample (shard and key), a worker that died.
    """
    micro = micro_batch_size(global_batch, micro_batch, world)
    accumulation = global_batch // (micro * world)
    starts = (
        step * global_batch + m * micro * world + rank * micro
        for step in range(first_step, steps)
        for m in range(accumulation)
    )
    order = SampleOrder(len(source), seed)
    requests = (
        _Request(order.indices(start, start + micro), np.arange(start, start + micro)) for start in starts
    )
    pending: list[P] = []
    for batch in _load(source, requests, workers):
        pending.append(batch)
        if len(pending) == accumulation:
            yield pending
            pending = []


def eval_batches(
    source: Source[P], *, batch_size: int, rank: int, world: int, workers: int, batches: int = 0
) -> Iterator[tuple[P, Tensor]]:
    """Every sample once and in order, the same number of batches on every rank.

    Batch b covers samples [b B W, (b + 1) B W), B = `batch_size` pairs per rank, W = `world`; rank r takes
    the r-th consecutive B of them. Rows past the end repeat the last sample.

    Args:
        batches: stop after so many; 0 for the whole split.

    Returns:
        Batch and mask_B: False on repeated rows. `place_B` is the sample's number in the split.
    """
    n, stretch = len(source), batch_size * world
    count = -(-n // stretch)
    numbers = range(min(count, batches) if batches else count)
    starts = (b * stretch + rank * batch_size for b in numbers)
    wanted = (np.arange(start, start + batch_size) for start in starts)
    requests = (_Request(np.minimum(places, n - 1), places) for places in wanted)
    for batch in _load(source, requests, workers):
        mask_B = batch.place_B < n
        batch.place_B.clamp_(max=n - 1)
        yield batch, mask_B


@dataclass(frozen=True)
class _Request:
    """What one batch is made of."""

    samples: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class _Failure:
    """A user-facing error on its way out of a worker: torch would wrap it into a traceback."""

    error: type[MuError]
    message: str


class _Reader(Dataset[Any]):
    """Answers requests; runs in the workers."""

    def __init__(self, source: Source[Any]) -> None:
        self.source = source

    def __getitem__(self, request: _Request) -> tuple[OnItsWay[Any], NDArray[np.int64]] | _Failure:
        room = self.source.room(len(request.samples))
        if get_worker_info() is not None:
            # Decoded where the other process reads it: no copy on the way.
            room.share_memory_()  # type: ignore[no-untyped-call]
        try:
            return self.source.gather(request.samples, room), request.places
        except MuError as error:
            return _Failure(type(error), str(error))


def _load(source: Source[P], requests: Iterable[_Request], workers: int) -> Iterator[P]:
    if workers:
        # Set before the fork: tokenizers would warn in each worker, though none tokenizes.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loader: DataLoader[Any] = DataLoader(
        _Reader(source),
        batch_size=None,
        sampler=requests,
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=_start_worker,
        # DataLoader draws a seed; from its own generator, or starting a loader would move the run's RNG.
        generator=torch.Generator(),
    )
    try:
        for answer in loader:
            if isinstance(answer, _Failure):
                raise answer.error(answer.message)
            gathered, places = answer
            yield gathered.batch(places)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MuError(
            f"{source.folder}: a loader process died, often for want of memory, "
            "or of shared memory under /dev/shm; lower data.workers"
        ) from error


def _as_is(answer: Any) -> Any:
    return answer


def _start_worker(_: int) -> None:
    # Signals go to the whole process group, but only the training process answers them: it still needs
    # batches to finish its step before the checkpoint. Workers end when it ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


__all__ = ["Source", "SplitSource", "collate", "eval_batches", "train_batches"]
