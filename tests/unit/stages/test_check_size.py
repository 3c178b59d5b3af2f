"""What `mu check` says of memory, speed and room, against counts one by one and files that are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate import Accelerator

from medunifier_cli.checkpoint import store
from medunifier_cli.objectives.pretraining import PretrainingLoss, build_model
from medunifier_cli.pretended.step import dry_step
from medunifier_cli.pretended.typical import LENGTHS, typical_batch
from medunifier_cli.stages.check import size
from medunifier_cli.stages.check.memory import StepMemory
from medunifier_cli.train.optim import adamw, state_tensors
from tests.tiny import tiny_recipe

HALF = ("train.precision=bf16", "text.vocabulary=60")


def test_batches_for_cards_are_those_that_counting_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = StepMemory(tiny_recipe(*HALF))
    cards = tuple(round(counted.of(pairs).peak / 2**20) for pairs in (5, 20, 60))
    monkeypatch.setattr(size, "CARDS", cards)
    monkeypatch.setattr(size, "GIB", 2**20)
    monkeypatch.setattr(size, "RESERVE", 0)
    found = size.largest_batches(counted, 8)
    assert tuple(found) == cards
    for card, pairs in found.items():
        # between two counts a line, which is as good as counting to a fraction of a percent
        assert counted.of(pairs).peak <= card * 2**20 * 1.002
        assert counted.of(pairs + 1).peak > card * 2**20 * 0.998
    assert size.check_cards(counted).startswith(f"at most {found[cards[0]]} on {cards[0]} GB, ")


def test_a_card_that_two_pairs_do_not_fit_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "RESERVE", 80 * size.GIB)
    line = size.check_cards(StepMemory(tiny_recipe(*HALF)))
    assert line.startswith("at most none on 24 GB, none on 40 GB, none on 80 GB, ")


@pytest.mark.parametrize(
    "overrides",
    [(), ("objectives.tig=0.0",), ("objectives.itc=0.0", "objectives.itm=0.0"), ("model.vit.frozen=true",)],
)
def test_hours_follow_from_the_rate_and_the_steps(overrides: tuple[str, ...]) -> None:
    recipe = tiny_recipe(*HALF, *overrides, "train.global_batch=16", "train.epochs=3")
    line = size.check_speed(recipe, 2, 1_000_000)
    pattern = r"([\d,]+) pairs/s on one H100 .*, ([\d,]+) on 2; ([\d.e+]+) hours for 187,500 steps: predicted"
    found = re.match(pattern, line)
    assert found is not None, line
    rate, both, hours = (float(number.replace(",", "")) for number in found.groups())
    assert both == pytest.approx(2 * rate, rel=0.01)
    assert hours == pytest.approx(3e6 / both / 3600, rel=0.06)
    assert "once the train split is prepared" in size.check_speed(recipe, 2, 0)


def test_a_checkpoint_is_as_large_as_is_said(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("train.precision=no", "text.vocabulary=60", "train.keep=3", "model.vit.frozen=true")
    model = build_model(recipe, 61)
    module = PretrainingLoss(model, 60).train()
    optimizer = adamw(module, recipe.optim)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = parameter.detach().clone()
    optimizer.step()
    frozen = {f"vit.vit.{name}" for name, _ in model.vit.frozen_tensors()}
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
    tensors = {"model": weights, "optimizer": state_tensors(module, optimizer)}
    folder = store.save(tmp_path, store.Checkpoint(1, tensors, {}), keep=1)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    monkeypatch.setattr(size, "_gb", lambda count: f"{count:.0f} bytes")
    line = size.check_disk(StepMemory(recipe), 0)
    found = re.match(r"(\d+) bytes a checkpoint, (\d+) bytes at most; ", line)
    assert found is not None, line
    one, most = map(int, found.groups())
    assert one == pytest.approx(written, rel=0.25), "names and shapes of so small a model take a good part"
    assert one < written
    assert most == 4 * one
    # 16 patches of 8 pixels and the class token, 48 wide, two bytes each
    assert line.endswith(f"where they are cached, {17 * 48 * 2:,} bytes an image")


def test_recipes_for_a_cpu_are_promised_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        size, "CARDS", (3,)
    )  # a larger one takes more of these small pairs than is counted soon
    names = [check.name for check in size.check_sizes(tiny_recipe("train.precision=no"), 1, {})]
    assert names == ["memory", "disk"]
    names = [check.name for check in size.check_sizes(tiny_recipe(*HALF), 1, {"train": 10})]
    assert names == ["memory", "micro-batch", "speed", "disk"]


def test_a_typical_batch_has_texts_as_long_as_reports() -> None:
    recipe = tiny_recipe("text.max_tokens=95")
    batch = typical_batch(recipe, 2000)
    assert batch.text.lengths_B.double().mean().item() == pytest.approx(46.8, abs=0.5)
    assert batch.text.lengths_B.max() <= max(LENGTHS)
    assert len(set(batch.digest_B.tolist())) == 2000
    assert typical_batch(tiny_recipe("text.max_tokens=12"), 50).text.lengths_B.max() == 12


def test_a_step_with_given_features_computes_what_is_left_without_the_tower() -> None:
    recipe = tiny_recipe(*HALF, "model.vit.frozen=true", "model.vit.depth=4")
    batch = typical_batch(recipe, 8)
    live, cached = (dry_step(recipe, 61, batch, live=live) for live in (True, False))
    tower = sum(launch.flop for launch in live.trace.launches if launch.part == "vit")
    assert tower > 0
    assert cached.flop_per_pair == pytest.approx(live.flop_per_pair - tower / 8, rel=1e-6)
    assert cached.pairs_per_s > live.pairs_per_s
