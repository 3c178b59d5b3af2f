"""`mu prepare --features RECIPE`: compute the output of a frozen image encoder once for every image.

Files of some hundred rows are computed each by one rank and written whole or not at all: a call after a kill
computes those that are missing, and ranks, or machines with `--part`, share them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.encoder.tower import load_tower
from medunifier_cli.data.batch import Fetched
from medunifier_cli.data.cached_features import (
    FeatureFacts,
    check_file,
    features_path,
    write_facts,
    write_features,
)
from medunifier_cli.data.images.stored import decode_grey, empty_images
from medunifier_cli.data.loader import eval_batches, eval_workers
from medunifier_cli.data.shards import Shards
from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import together
from medunifier_cli.errors import DataError
from medunifier_cli.files import make_folder
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.vit import ImageEncoder, pixels
from medunifier_cli.stages.cached.plan import (
    AnyRecipe,
    FeaturePlan,
    describe,
    plan_features,
    refuse_small_disk,
    room,
    sizes_of,
    with_weights,
)
from medunifier_cli.temporary import sweep
from medunifier_cli.terminal.progress import Progress
from medunifier_cli.terminal.say import say
from medunifier_cli.train.accelerator import accelerator_of

Missing = list[tuple[str, int]]
"""Files that are not there, as (split, number)."""
BATCH = 64
"""Images per forward pass; changes no feature beyond rounding."""


@dataclass(frozen=True)
class FeatureJob:
    """What one command computes."""

    recipe: AnyRecipe
    out: Path | None = None
    """Folder for the features; None for what the recipe says."""
    part: tuple[int, int] = (1, 1)
    """I of N: every Nth file, from the Ith on."""
    workers: int | None = None
    """Loader processes per rank; None for those of the recipe."""


def compute_features(job: FeatureJob) -> None:
    """One rank's share of the features that a recipe reads, of those that are not there yet.

    Raises:
        DataError: too little room, features of something else in the folder, or a damaged image.
        MuError: the encoder is trained or cannot be loaded, or a split is missing.
    """
    started = time.monotonic()
    accelerator = accelerator_of(job.recipe.train, job.out or Path())
    plan = together(lambda: plan_features(job.recipe, job.out))
    sizes = together(lambda: sizes_of(plan))
    own = together(lambda: _begin(plan, sizes, job.part) if world.is_main() else [])
    # the main rank's: others may look when the first files are written already
    missing: Missing = [(split, number) for split, number in world.exchange(own)[0]]  # lists by then
    encoder, weights = together(lambda: _load_encoder(plan))
    facts = with_weights(sizes, weights)
    together(lambda: _check_folder(plan, facts, missing, job.part) if world.is_main() else None)
    if accelerator.device.type == "cuda":
        encoder.vit.to(torch.bfloat16)  # as `MedUnifier.to_device` has it
    encoder.to(accelerator.device)
    workers = plan.workers if job.workers is None else job.workers
    total = sum(len(facts[split].rows_of(number)) for split, number in _share(missing))
    with Progress(total, "image", hidden=not world.is_main()) as progress:
        for split, shards in plan.shards.items():
            numbers = [number for of, number in _share(missing) if of == split]
            source = _Images(shards, facts[split], numbers, plan.encoder.data.image_size)
            with closing(_encode(encoder, source, accelerator.device, workers, progress)) as blocks:
                stream = _Stream(blocks)
                for number in numbers:
                    rows = stream.take(len(facts[split].rows_of(number)))
                    write_features(plan.folder, split, facts[split], number, rows)
    world.barrier()
    if world.is_main():
        _say_result(plan, facts, missing, time.monotonic() - started)


def _share(missing: Missing) -> list[tuple[str, int]]:
    """The files of this rank."""
    return missing[world.rank() :: world.size()]


def _files_of(facts: Mapping[str, FeatureFacts], part: tuple[int, int] = (1, 1)) -> Missing:
    """All files of a part, as (split, number)."""
    files = [(split, number) for split, of in facts.items() for number in range(of.files)]
    return files[part[0] - 1 :: part[1]]


def _absent(folder: Path, files: Missing) -> Missing:
    return [(split, number) for split, number in files if not features_path(folder, split, number).exists()]


def _begin(plan: FeaturePlan, sizes: Mapping[str, FeatureFacts], part: tuple[int, int]) -> Missing:
    """Say how much room the features take, and refuse a disk that has less; the files that are missing."""
    missing = _absent(plan.folder, _files_of(sizes, part))
    needed = sum(sizes[split].bytes_of(number) for split, number in missing)
    free = refuse_small_disk(plan.folder, needed)
    make_folder(plan.folder)
    sweep(plan.folder)
    of_part = f" of part {part[0]}/{part[1]}" if part[1] > 1 else ""
    left = f"{room(needed)} to compute{of_part}, {room(free)} free" if missing else f"all{of_part} there"
    say(f"{plan.folder}: features of {describe(sizes)}; {left}")
    return missing


def _load_encoder(plan: FeaturePlan) -> tuple[ImageEncoder, str]:
    """The image encoder as pre-training has it, on the CPU, and the hash of its weights."""
    torch.manual_seed(plan.encoder.train.seed)  # random weights are drawn first in pre-training, too
    encoder, weights = load_tower(plan.encoder)
    return encoder.eval(), weights


def _check_folder(
    plan: FeaturePlan, facts: Mapping[str, FeatureFacts], missing: Missing, part: tuple[int, int]
) -> None:
    """Say in the folder what its features depend on; refuse features there that are damaged or of others."""
    for split, of in facts.items():
        write_facts(plan.folder, split, of)
    for split, number in sorted(set(_files_of(facts, part)) - set(missing)):
        check_file(plan.folder, split, facts[split], number)


class _Images:
    """The images of some files' rows; picklable. A `loader.SampleSource`."""

    def __init__(self, shards: Shards, facts: FeatureFacts, numbers: Sequence[int], image_size: int) -> None:
        self.shards, self.image_size = shards, image_size
        rows = [np.arange(rows.start, rows.stop) for rows in map(facts.rows_of, numbers)]
        self.rows: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *rows])

    @property
    def folder(self) -> Path:
        """Folder of the shards."""
        return self.shards.folder

    def __len__(self) -> int:
        return len(self.rows)

    def empty(self, count: int) -> Tensor:
        """An uninitialised tensor for `count` images, uint8 [count, 1, H, W]."""
        return empty_images(count, self.image_size)

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], image_B1HW: Tensor) -> _Read:
        """Images decoded into `image_B1HW`.

        Raises:
            DataError: a damaged image or shard; names shard and key.
        """
        rows, pixels_BHW = self.rows[samples], image_B1HW.numpy()[:, 0]
        bodies = self.shards.images(rows)
        for row, body, out_HW in zip(rows.tolist(), bodies, pixels_BHW, strict=True):
            if not decode_grey(body, out_HW):
                raise DataError(f"{self.shards.where(row)}: damaged image, or one of too many pixels")
        return _Read(image_B1HW)


@dataclass(frozen=True)
class _Read:
    """A batch of `_Images`."""

    image_B1HW: Tensor


def _encode(
    encoder: ImageEncoder, source: _Images, device: torch.device, workers: int, progress: Progress
) -> Generator[Tensor, None, None]:
    """The features of all images in order, bf16 [B, V, D] on the CPU."""
    workers = eval_workers(workers, -(-len(source) // BATCH))
    loaded = eval_batches(source, batch_size=BATCH, rank=0, world=1, workers=workers)
    waiting: list[Fetched] = []
    done = progress.done
    with closing(loaded) as batches:
        for batch, mask_B in batches:
            image_B1HW = batch.image_B1HW[: int(mask_B.sum())].to(device)
            with measuring():
                waiting.append(Fetched([encoder(pixels(image_B1HW)).to(torch.bfloat16)]))
            # one batch behind: a GPU computes the next one while the disk takes this one
            if len(waiting) > 1:
                yield waiting.pop(0).get()[0]
            done += len(image_B1HW)
            progress.advance(done)
    for last in waiting:
        yield last.get()[0]


class _Stream:
    """Blocks of rows, cut anew."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        self._blocks = blocks
        self._rest = torch.empty(0)

    def take(self, count: int) -> Iterator[Tensor]:
        """The next `count` rows, in blocks."""
        while count:
            block = self._rest if len(self._rest) else next(self._blocks)
            yield block[:count]
            self._rest = block[count:]
            count -= len(block[:count])


def _say_result(
    plan: FeaturePlan, facts: Mapping[str, FeatureFacts], missing: Missing, seconds: float
) -> None:
    if images := sum(len(facts[split].rows_of(number)) for split, number in missing):
        say(f"{plan.folder}: features of {images:,} images computed in {seconds:.0f} s")
    if absent := _absent(plan.folder, _files_of(facts)):
        say(f"{plan.folder}: {len(absent):,} files of other parts are not there yet")
