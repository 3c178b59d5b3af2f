"""What a validation scores: the own partner among all, and ITM on another text, against loops over pairs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from medunifier_cli.data.batch import Batch
from medunifier_cli.data.loader import SplitSource, collate
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.evaluate.pair_scores import PairScores
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import pixels
from medunifier_cli.run.log import without_times
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.loop import fit
from medunifier_cli.train.stop import ValidationEndedError
from tests.hand_made import WORDS, HandMade, sample, write_shard, write_split
from tests.tiny import tiny_recipe

TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)
CPU = torch.device("cpu")
T = TypeVar("T")


def split(folder: Path, n: int = 40) -> SplitSource:
    """Pairs of which the first three say the same, word for word."""
    same = {"sections": {"findings": "heart enlarged", "impression": ""}}
    rows = (sample(i, **(same if i < 3 else {})) for i in range(n))
    write_shard(folder / "valid-000000.tar", rows)
    recipe = tiny_recipe()
    return SplitSource(Shards.open(folder, "valid"), TOKENIZER, recipe.data, recipe.text, HandMade())


def model_of(source: SplitSource) -> MedUnifier:
    torch.manual_seed(0)
    recipe = tiny_recipe("model.qformer.init_std=0.3")
    return MedUnifier(recipe, TOKENIZER.size).eval()


def pairs_of(source: SplitSource, numbers: Iterable[int]) -> Batch:
    rows = list(numbers)
    return collate([source.sample(i) for i in rows], rows)


def similarity(model: MedUnifier, source: SplitSource, numbers: list[int]) -> list[list[float]]:
    """One image and one text at a time: the largest cosine over the image's queries."""
    images, texts = [], []
    with torch.no_grad():
        for i in numbers:
            batch = pairs_of(source, [i])
            images.append(model.image_head(model.encode_image(pixels(batch.image_B1HW)).query_BQD)[0])
            texts.append(model.text_head(model.encode_text(batch.text))[0])
    return [[float((image @ text).max()) for text in texts] for image in images]


def test_ranks_are_those_of_a_loop_over_pairs(tmp_path: Path) -> None:
    source = split(tmp_path)
    model = model_of(source)
    scores = PairScores(source, 30, matching=True)
    numbers = scores.pairs.number_n.tolist()
    assert len(numbers) == len(set(numbers)) == 30
    assert {0, 1, 2} <= set(numbers), "texts that are the same are among them"
    measured = scores.measure(model, CPU)
    table = similarity(model, source, numbers)
    text = [source.text(i) for i in numbers]
    for way, rows in (
        ("image_to_text", table),
        ("text_to_image", [list(column) for column in zip(*table, strict=True)]),
    ):
        rank = []
        for i, row in enumerate(rows):
            best = max(value for value, words in zip(row, text, strict=True) if words == text[i])
            rank.append(1 + sum(value > best + 1e-6 for value in row))
        assert measured[f"{way}_median_rank"] == statistics.median(rank)
        for k in (1, 5, 10):
            assert measured[f"{way}_recall@{k}"] == pytest.approx(sum(r <= k for r in rank) / 30)
    for k in (1, 5, 10):
        both = measured[f"image_to_text_recall@{k}"] + measured[f"text_to_image_recall@{k}"]
        assert measured[f"recall@{k}"] == pytest.approx(both / 2)
    # 27 texts that stand alone, and three that are each other's
    assert measured["recall@1_chance"] == pytest.approx((27 * 1 / 30 + 3 * 3 / 30) / 30)


def test_itm_is_asked_for_the_own_text_and_one_of_other_words(tmp_path: Path) -> None:
    source = split(tmp_path)
    model = model_of(source)
    scores = PairScores(source, 40, matching=True)
    assert scores.other_n is not None
    right = 0
    for i, other in enumerate(scores.other_n.tolist()):
        assert source.text(i) != source.text(other)
        for j, answer in ((i, 1), (other, 0)):
            image, words = pairs_of(source, [i]), pairs_of(source, [j])
            with torch.no_grad():
                memory = model.encode_image(pixels(image.image_B1HW))
                said = int(model.match(memory, torch.tensor([0]), words.text).argmax())
            right += said == answer
    measured = scores.measure(model, CPU)
    assert measured["itm_random_accuracy"] == pytest.approx(right / 80)
    assert measured["itm_random_accuracy_chance"] == 0.5


def test_without_itm_nothing_is_said_of_it_and_one_pair_has_no_rank(tmp_path: Path) -> None:
    source = split(tmp_path)
    model = model_of(source)
    assert "itm_random_accuracy" not in PairScores(source, 8, matching=False).measure(model, CPU)
    assert "recall@10" not in PairScores(source, 8, matching=False).measure(model, CPU)
    assert PairScores(source, 1, matching=True).measure(model, CPU) == {}


def test_features_that_are_not_finite_give_no_scores_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = split(tmp_path)
    model = model_of(source)
    with torch.no_grad():
        model.text_head.project.weight.fill_(float("nan"))
    assert PairScores(source, 8, matching=True).measure(model, CPU) == {}
    assert "warning: no retrieval scores in this validation" in capsys.readouterr().err


def trained(folder: Path, *settings: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Four steps with two validations: the log, and the weights."""
    recipe = tiny_recipe(
        "data.workers=0", "train.steps=4", "train.valid_every=2", "train.precision=no", "train.log_every=1",
        "model.qformer.dropout=0.1", "train.tensorboard=false", *settings,
    )  # fmt: skip
    shards = Shards.open(write_split(folder / "shards", "train", 24, per_shard=24), "train")
    source = SplitSource(shards, TOKENIZER, recipe.data, recipe.text, HandMade())
    run = Run(folder / "run")
    run.begin(recipe, {}, ["mu", "pretrain"])
    stage = Pretraining(recipe, run, source, source, TOKENIZER, CPU)
    fit(stage, run, accelerator_of(recipe.train, run.folder), recipe.train, recipe.optim)
    log = [without_times(json.loads(line)) for line in run.log.read_text().splitlines()]
    return log, dict(stage.model.state_dict())


def test_scoring_changes_no_number_of_training(tmp_path: Path) -> None:
    with_log, with_weights = trained(tmp_path / "with", "train.valid_pairs=20")
    without_log, without_weights = trained(tmp_path / "without", "train.valid_pairs=0")
    added = {key for line in with_log for key in line} - {key for line in without_log for key in line}
    assert {"recall@1", "recall@10_chance", "itm_random_accuracy"} <= added
    assert [{k: v for k, v in line.items() if k not in added} for line in with_log] == without_log
    assert all(torch.equal(tensor, without_weights[name]) for name, tensor in with_weights.items())
    without_itc = trained(tmp_path / "itg", "objectives.itc=0", "objectives.itm=0")[0]
    assert not any("recall@1" in line for line in without_itc)


def test_a_signal_ends_the_scores_at_a_batch(tmp_path: Path) -> None:
    source = split(tmp_path)
    taken = []

    def watch(batches: Iterable[T], /) -> Iterator[T]:
        for batch in batches:
            if taken:
                raise ValidationEndedError
            taken.append(batch)
            yield batch

    with pytest.raises(ValidationEndedError):
        PairScores(source, 40, matching=True).measure(model_of(source), CPU, watch)
    assert len(taken) == 1
