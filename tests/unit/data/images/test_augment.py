"""Augmentation: what each key may do to an image, and that it depends on (seed, sample, epoch) alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.data.images.augment import Augmented, augment
from medunifier_cli.data.loader import SplitSource, train_batches
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.recipe.schema import AugmentConfig
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import tiny_recipe

EDGE = 64
TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)
ALL = AugmentConfig(crop=0.7, rotation=10, contrast=0.3, brightness=0.1)


def many(image_HW: NDArray[np.uint8], config: AugmentConfig, count: int = 300) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return [augment(image_HW, config, generator.random(6), EDGE) for _ in range(count)]


def centre_of(image_HW: NDArray[np.uint8]) -> tuple[float, float]:
    """Centre of gravity from the middle of the image, (right, down), in pixels."""
    down, right = np.indices(image_HW.shape) + 0.5 - EDGE / 2
    total = image_HW.sum(dtype=np.float64)
    return float((right * image_HW).sum() / total), float((down * image_HW).sum() / total)


def spot(right: int, down: int) -> NDArray[np.uint8]:
    """A bright square of 4 pixels, its centre this far from the middle."""
    image_HW = np.zeros((EDGE, EDGE), np.uint8)
    y, x = EDGE // 2 + down, EDGE // 2 + right
    image_HW[y - 2 : y + 2, x - 2 : x + 2] = 200
    return image_HW


def test_nothing_is_changed_by_default() -> None:
    image = np.random.default_rng(0).integers(0, 256, (EDGE, EDGE)).astype(np.uint8)
    assert not AugmentConfig().any
    assert all(np.array_equal(image, one) for one in many(image, AugmentConfig(), 5))


def test_a_rotation_stays_within_its_degrees_and_goes_both_ways() -> None:
    angles = []
    for one in many(spot(16, 0), AugmentConfig(rotation=10)):
        right, down = centre_of(one)
        assert math.hypot(right, down) == pytest.approx(16, abs=0.3), (
            "about the middle, without a change of size"
        )
        angles.append(math.degrees(math.atan2(down, right)))
    assert -10.3 < min(angles) < -9
    assert 9 < max(angles) < 10.3
    assert abs(sum(angles) / len(angles)) < 1


def test_a_crop_keeps_its_share_of_the_area_and_nothing_from_outside() -> None:
    even = np.full((EDGE, EDGE), 90, np.uint8)
    assert all((one == 90).all() for one in many(even, AugmentConfig(crop=0.5)))
    # a grey level that rises by 2 with each pixel to the right rises by less where a part is enlarged
    ramp = np.broadcast_to(np.arange(EDGE) * 2, (EDGE, EDGE)).astype(np.uint8)
    shares = [
        ((int(one[0, -9]) - int(one[0, 8])) / (2 * (EDGE - 17))) ** 2
        for one in many(ramp, AugmentConfig(crop=0.5))
    ]
    assert 0.45 < min(shares) < 0.55
    assert 0.93 < max(shares) < 1.03
    lefts = [int(one[0, 0]) for one in many(ramp, AugmentConfig(crop=0.5))]
    assert min(lefts) <= 2
    assert 30 < max(lefts) <= 2 * EDGE * (1 - math.sqrt(0.5)) + 2


def test_a_crop_of_a_larger_image_shows_the_same_part() -> None:
    generator = np.random.default_rng(1)
    coarse = generator.uniform(0, 255, (8, 8))
    # the same smooth picture at two sizes
    small, large = (
        np.asarray(Image.fromarray(coarse.astype(np.uint8)).resize((edge, edge), Image.Resampling.BICUBIC))
        for edge in (EDGE, 3 * EDGE)
    )
    for one, other in zip(many(small, ALL, 20), many(large, ALL, 20), strict=True):
        inner = np.s_[4:-4, 4:-4]  # at the rim an enlarged picture is extrapolated
        assert np.abs(one[inner].astype(int) - other[inner]).mean() < 3


def test_crops_are_as_sharp_as_whole_images(tmp_path: Path) -> None:
    recipe = tiny_recipe("data.augment.crop=0.5")
    size = recipe.data.image_size
    shards = Shards.open(write_split(tmp_path, "train", 10, per_shard=10, size=2 * size), "train")
    source = SplitSource(shards, TOKENIZER, recipe.data, recipe.text, HandMade())
    rows = [(sample, sample) for sample in range(len(source))]

    def detail(images: list[torch.Tensor]) -> float:
        """Mean difference of neighbours, grey levels."""
        return float(torch.stack(images).float().diff(dim=-1).abs().mean())

    whole, crops = detail(read(source, *rows)), detail(read(Augmented(source, recipe.data.augment, 0), *rows))
    assert 0.85 * whole < crops


def test_left_stays_left() -> None:
    image = np.zeros((EDGE, EDGE), np.uint8)
    image[:, : EDGE // 2] = 200
    image[: EDGE // 2] //= 2  # and above stays above
    for one in many(image, ALL):
        assert one[:, : EDGE // 4].mean() > one[:, -EDGE // 4 :].mean() + 30
        assert one[: EDGE // 4, : EDGE // 4].mean() < one[-EDGE // 4 :, : EDGE // 4].mean() - 20


def test_brightness_shifts_and_contrast_stretches_around_the_mean() -> None:
    even = np.full((EDGE, EDGE), 100, np.uint8)
    levels = [int(one[0, 0]) for one in many(even, AugmentConfig(brightness=0.1))]
    assert (min(levels), max(levels)) == (75, 125)  # 10 % of 255, rounded
    halves = np.full((EDGE, EDGE), 60, np.uint8)
    halves[:, ::2] = 140
    spreads = []
    for one in many(halves, AugmentConfig(contrast=0.25)):
        assert one.mean() == pytest.approx(100, abs=0.6)
        spreads.append(int(one[0, 0]) - int(one[0, 1]))
    assert (min(spreads), max(spreads)) == (60, 100)
    extreme = many(np.array([[0, 255]] * 2, np.uint8), AugmentConfig(contrast=0.9, brightness=0.9))
    assert all(one[0, 0] <= one[0, 1] for one in extreme), "clipped, not wrapped"


def source_in(folder: Path) -> SplitSource:
    recipe = tiny_recipe()
    shards = Shards.open(write_split(folder, "train", 10, per_shard=10), "train")
    return SplitSource(shards, TOKENIZER, recipe.data, recipe.text, HandMade())


def read(source: Augmented | SplitSource, *rows: tuple[int, int]) -> list[torch.Tensor]:
    """Images of (sample, position)."""
    samples, positions = (np.array(column) for column in zip(*rows, strict=True))
    batch = source.read(samples, positions, source.empty(len(rows)))
    return list(batch.image_B1HW.clone())


def test_an_image_depends_on_seed_sample_and_epoch_alone(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    one, other = Augmented(source, ALL, seed=1), Augmented(source, ALL, seed=2)
    (alone,) = read(one, (3, 14))
    assert torch.equal(read(one, (5, 11), (3, 19), (4, 12))[1], alone), "another place of the same epoch"
    assert not torch.equal(read(one, (3, 24))[0], alone), "the next epoch"
    assert not torch.equal(read(other, (3, 14))[0], alone)
    assert not torch.equal(read(source, (3, 14))[0], alone)


def test_a_share_of_the_images_is_changed(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    rows = [(sample, sample + 10 * epoch) for epoch in range(20) for sample in range(10)]
    plain, every = read(source, *rows), read(Augmented(source, ALL, 0), *rows)
    some = read(Augmented(source, replace(ALL, share=0.4), 0), *rows)
    changed = [not torch.equal(one, other) for one, other in zip(some, plain, strict=True)]
    assert 0.3 < sum(changed) / len(changed) < 0.5
    # and these as without the key
    assert all(torch.equal(a, b) for a, b, new in zip(some, every, changed, strict=True) if new)
    assert not replace(ALL, share=0).any


@pytest.mark.parametrize(("ranks", "micro", "workers"), [(1, 8, 2), (2, 4, 0), (1, 2, 0)])
def test_ranks_micro_batches_workers_and_a_restart_change_no_image(
    tmp_path: Path, ranks: int, micro: int, workers: int
) -> None:
    source = Augmented(source_in(tmp_path), ALL, seed=0)

    def images(first: int, ranks: int, micro: int, workers: int) -> dict[int, torch.Tensor]:
        found = {}
        for rank in range(ranks):
            for step in train_batches(
                source, seed=0, first_step=first, steps=3, global_batch=8, micro_batch=micro, rank=rank,
                world=ranks, workers=workers,
            ):  # fmt: skip
                for batch in step:
                    found |= dict(zip(batch.position_B.tolist(), batch.image_B1HW.clone(), strict=True))
        return found

    whole, parts = images(0, 1, 8, 0), images(1, ranks, micro, workers)
    assert sorted(parts) == list(range(8, 24))
    assert all(torch.equal(image, whole[position]) for position, image in parts.items())


def test_training_reads_changed_images_and_validation_the_ones_of_the_shards(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        "data.augment.rotation=10", "data.augment.crop=0.8", "data.workers=0", "train.steps=1"
    )
    source = source_in(tmp_path / "shards")
    stage = Pretraining(recipe, Run(tmp_path / "run"), source, source, TOKENIZER, torch.device("cpu"))
    ((batch,),) = stage.batches(0)
    plain = {source.sample(i).key: source.sample(i).image_HW for i in range(len(source))}
    assert not any(
        np.array_equal(image[0].numpy(), plain[key])
        for key, image in zip(batch.keys, batch.image_B1HW, strict=True)
    )
    assert stage.validation is not None
    assert stage.validation.source is source
