"""Several sources as one: each sample of each source once an epoch, with its own image, label and key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medunifier_cli.data.labels.labelled import LabelledImages
from medunifier_cli.data.labels.mixed import Mixed
from medunifier_cli.data.loader import train_batches
from medunifier_cli.data.shards import Shards
from tests.run.conftest import write_split

SIZES = {"real": 7, "more": 4, "most": 5}


@pytest.fixture
def parts(tmp_path: Path) -> list[LabelledImages]:
    found = []
    for number, (name, count) in enumerate(SIZES.items()):
        write_split(tmp_path / name, "train", count, number)
        shards = Shards.open(tmp_path / name, "train")
        # of the first source every second row only: rows and samples must not be confused
        rows = np.arange(1, count, 2) if name == "real" else np.arange(count)
        found.append(LabelledImages(shards, rows, rows + 100 * number, 16))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_every_sample_of_every_source_once(parts: list[LabelledImages], workers: int) -> None:
    mixed = Mixed(parts)
    assert len(mixed) == 3 + 4 + 5
    single = {}
    for part in parts:
        for i in range(len(part)):
            one = part.read(np.array([i]), np.array([0]), part.empty(1))
            single[int(one.target[0])] = (one.keys[0], one.input[0])
    steps = list(
        train_batches(
            mixed, seed=3, first_step=0, steps=6, global_batch=4, micro_batch=2, rank=0, world=1,
            workers=workers,
        )
    )  # fmt: skip
    seen = []
    for step in steps:
        for batch in step:
            for key, image, target in zip(batch.keys, batch.input, batch.target.tolist(), strict=True):
                assert single[target][0] == key
                assert torch.equal(single[target][1], image)
                seen.append(target)
    assert sorted(seen[:12]) == sorted(seen[12:]) == sorted(single)
    assert seen[:12] != seen[12:]
    assert seen[:12] != sorted(seen[:12])
    assert len({target // 100 for target in seen[:4]}) > 1  # shuffled over the sources, not one after another


def test_ranks_share_the_order_of_one(parts: list[LabelledImages]) -> None:
    def keys(rank: int, world: int) -> list[list[int]]:
        batches = train_batches(
            Mixed(parts), seed=1, first_step=0, steps=5, global_batch=6, micro_batch=6 // world, rank=rank,
            world=world, workers=0,
        )  # fmt: skip
        return [[number for batch in step for number in batch.target.tolist()] for step in batches]

    halves = zip(keys(0, 2), keys(1, 2), strict=True)
    assert [first + second for first, second in halves] == keys(0, 1)


def test_a_resumed_order_goes_on_as_if_never_stopped(parts: list[LabelledImages]) -> None:
    def targets(first: int) -> list[list[int]]:
        batches = train_batches(
            Mixed(parts), seed=1, first_step=first, steps=7, global_batch=5, micro_batch=0, rank=0, world=1,
            workers=0,
        )  # fmt: skip
        return [step[0].target.tolist() for step in batches]

    assert targets(4) == targets(0)[4:]
