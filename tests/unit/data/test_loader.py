"""Batches: the same for every number of ranks and workers, each sample once, damage named."""

import os
import pickle
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medunifier_cli.data.contract import Batch
from medunifier_cli.data.loader import SplitSource, collate, eval_batches, train_batches
from medunifier_cli.data.order import SampleOrder
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.recipe.schema import DataConfig, TextConfig
from tests.hand_made import WORDS, HandMade, png, sample, write_shard, write_split

TOKENIZER = TextTokenizer.train([" ".join(WORDS) + " case 0123456789 ."], 200)
TEXT = TextConfig(max_tokens=12)


def open_source(folder: Path, split: str = "train", need_text: bool = True, **data: object) -> SplitSource:
    recipe = DataConfig(image_size=16, **data)  # type: ignore[arg-type]
    return SplitSource(Shards.open(folder, split), TOKENIZER, recipe, TEXT, HandMade(), need_text=need_text)


@pytest.fixture
def source(tmp_path: Path) -> SplitSource:
    return open_source(write_split(tmp_path, "train", 23, 10))


def batches(source: SplitSource, rank: int, world: int, workers: int, **kwargs: int) -> Iterator[list[Batch]]:
    settings = {"seed": 1, "first_step": 0, "steps": 6, "global_batch": 12, "micro_batch": 3} | kwargs
    return train_batches(source, rank=rank, world=world, workers=workers, **settings)


def joined(source: SplitSource, world: int, workers: int, **kwargs: int) -> list[tuple[object, ...]]:
    """All rows in the order of their places, whatever rank they came from."""
    rows = []
    for rank in range(world):
        for step in batches(source, rank, world, workers, **kwargs):
            for batch in step:
                texts = batch.text.ids_N.split(batch.text.lengths_B.tolist())
                for i, place in enumerate(batch.position_B.tolist()):
                    pixels = batch.image_B1HW[i].numpy().tobytes()
                    row = (place, batch.keys[i], pixels, texts[i].tolist())
                    rows.append((*row, int(batch.digest_B[i]), int(batch.label_B[i])))
    return sorted(rows)


def test_ranks_and_workers_change_nothing(source: SplitSource) -> None:
    one = joined(source, 1, 0)
    assert [row[0] for row in one] == list(range(72))
    for world, workers in [(1, 2), (2, 1), (2, 3)]:
        assert joined(source, world, workers) == one


def test_micro_batches_change_no_row(source: SplitSource) -> None:
    assert joined(source, 2, 0, micro_batch=0) == joined(source, 1, 0, micro_batch=4)
    assert [len(step) for step in batches(source, 0, 2, 0, micro_batch=3)] == [2] * 6
    first = next(iter(batches(source, 1, 2, 0, micro_batch=3)))
    assert [batch.position_B.tolist() for batch in first] == [[3, 4, 5], [9, 10, 11]]


def test_shards_change_nothing(tmp_path: Path) -> None:
    few = open_source(write_split(tmp_path / "few", "train", 23, 23))
    many = open_source(write_split(tmp_path / "many", "train", 23, 2))
    assert joined(few, 1, 0) == joined(many, 1, 2)


def test_every_epoch_holds_each_sample_once(source: SplitSource) -> None:
    keys = [row[1] for row in joined(source, 2, 1)]
    for epoch in range(3):
        assert sorted(keys[epoch * 23 : (epoch + 1) * 23]) == [f"s{i:05d}" for i in range(23)]


def test_a_resumed_run_sees_what_an_undisturbed_one_sees(source: SplitSource) -> None:
    assert joined(source, 1, 2, first_step=4) == joined(source, 1, 0)[48:]


def test_a_batch_holds_what_the_shard_says(source: SplitSource) -> None:
    for step in batches(source, 0, 1, 0):
        for batch in step:
            texts = batch.text.ids_N.split(batch.text.lengths_B.tolist())
            for i, key in enumerate(batch.keys):
                number = int(key[1:])
                _, image, meta = sample(number)
                assert png(batch.image_B1HW[i, 0].numpy()) == image
                words = " ".join(meta["sections"].values())
                assert texts[i].tolist() == TOKENIZER.encode(words, TEXT.max_tokens)
                assert batch.label_B[i] == (0 if number % 2 else 1)


def test_a_batch_is_its_samples_collated(source: SplitSource) -> None:
    order = SampleOrder(len(source), 1)
    for workers in (0, 1):
        (batch,) = next(batches(source, 0, 1, workers, micro_batch=0))
        slow = collate([source.sample(i) for i in order.indices(0, 12).tolist()], range(12))
        assert batch.keys == slow.keys
        for fast, other in [
            (batch.image_B1HW, slow.image_B1HW), (batch.text.ids_N, slow.text.ids_N),
            (batch.text.lengths_B, slow.text.lengths_B), (batch.digest_B, slow.digest_B),
            (batch.label_B, slow.label_B), (batch.position_B, slow.position_B),
        ]:  # fmt: skip
            assert torch.equal(fast, other)
            assert fast.dtype == other.dtype


def test_starting_workers_leaves_the_random_state_alone(source: SplitSource) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches(source, 0, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("world", "workers", "size"), [(1, 0, 5), (2, 2, 4), (3, 1, 8), (1, 0, 23)])
def test_evaluation_sees_every_sample_once_in_order(
    source: SplitSource, world: int, workers: int, size: int
) -> None:
    ranks = [
        list(eval_batches(source, batch_size=size, rank=r, world=world, workers=workers))
        for r in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    seen = []
    for step in zip(*ranks, strict=True):
        for batch, mask in step:
            assert len(batch.keys) == size
            seen += [key for key, real in zip(batch.keys, mask.tolist(), strict=True) if real]
    assert seen == [f"s{i:05d}" for i in range(23)]


def test_evaluation_can_stop_early(source: SplitSource) -> None:
    assert len(list(eval_batches(source, batch_size=5, rank=0, world=1, workers=1, batches=2))) == 2
    assert len(list(eval_batches(source, batch_size=5, rank=0, world=1, workers=1, batches=9))) == 5


def test_samples_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [sample(i, sections={"findings": " " if i % 3 else "clear lungs"}) for i in range(9)]
    write_shard(tmp_path / "train-000000.tar", rows)
    source = open_source(tmp_path)
    assert (len(source), source.excluded) == (3, 6)
    assert [source.sample(i).key for i in range(3)] == ["s00000", "s00003", "s00006"]
    assert source.text(1) == "clear lungs"
    whole = open_source(tmp_path, need_text=False)
    assert (len(whole), whole.excluded) == (9, 0)
    assert whole.sample(1).token_ids == [TOKENIZER.cls_id, TOKENIZER.sep_id]
    with pytest.raises(
        DataError, match=r"no sample of split 'train' is left; 9 of 9 have no text in impression"
    ):
        open_source(tmp_path, sections=("impression",))


def test_limit_applies_to_the_train_split_alone(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 9, 4)
    write_split(tmp_path, "valid", 9, 4)
    assert len(open_source(tmp_path, limit=5)) == 5
    assert len(open_source(tmp_path, "valid", limit=5)) == 9


def test_text_cache_is_used_and_follows_the_recipe(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 5, 5)
    first = open_source(tmp_path).sample(2)
    cached = list((tmp_path / ".cache").iterdir())
    assert open_source(tmp_path).sample(2).token_ids == first.token_ids
    assert list((tmp_path / ".cache").iterdir()) == cached
    assert open_source(tmp_path, sections=("impression",)).sample(2).token_ids != first.token_ids
    cached[0].write_bytes(b"damaged")
    assert open_source(tmp_path).sample(2).token_ids == first.token_ids


def test_images_of_another_size_or_mode_are_converted(tmp_path: Path) -> None:
    grey = np.full((40, 20), 77, np.uint8)
    rows = [("a", png(grey), sample(0)[2]), ("b", png(grey, "RGB"), sample(1)[2])]
    write_shard(tmp_path / "train-000000.tar", rows)
    source = open_source(tmp_path)
    for i in range(2):
        assert source.sample(i).image_HW.tolist() == [[77] * 16] * 16


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_reaches_the_user_as_one_line(tmp_path: Path, workers: int) -> None:
    key, image, meta = sample(3)
    rows = [sample(i) for i in range(3)] + [(key, image[:-40], meta)]
    write_shard(tmp_path / "train-000000.tar", rows)
    with pytest.raises(
        DataError,
        match=r"^\S+train-000000\.tar: s00003: damaged image, .*; run `mu prepare` again$",
    ):
        list(batches(open_source(tmp_path), 0, 1, workers))


def test_a_worker_that_dies_is_one_line(source: SplitSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SplitSource, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(MuError, match=r"a loader process died, .*lower data\.workers"):
        list(batches(source, 0, 1, 1))


def test_workers_outlive_the_signals_of_their_group(source: SplitSource) -> None:
    """SLURM signals every process of a job; the step under way still needs its batches."""
    import psutil

    stream = batches(source, 0, 1, 2, steps=40)
    next(stream)
    workers = psutil.Process().children(recursive=True)
    assert workers
    # from another process than the parent, whose SIGTERM ends a worker
    for number in ("TERM", "USR1", "INT"):
        subprocess.run(["kill", f"-{number}", *(str(worker.pid) for worker in workers)], check=True)
    assert len(list(stream)) == 39


def test_a_batch_that_does_not_divide_is_refused(source: SplitSource) -> None:
    with pytest.raises(MuError, match=r"train\.global_batch: 12 is not a multiple of 5 pairs x 2 processes"):
        list(batches(source, 0, 2, 0, micro_batch=5))


def test_source_travels_to_workers_without_tokenizer(source: SplitSource) -> None:
    again = pickle.loads(pickle.dumps(source))
    assert again.sample(4).token_ids == source.sample(4).token_ids
