"""How many pairs are contrasted is a part of what a run is trained on, and does not change by accident."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.contrast import PAIRS, free_keys, pairs_per_pass
from medunifier_cli.distributed import world
from medunifier_cli.errors import CheckpointError
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from tests.tiny import tiny_recipe


def recipe(micro_batch: int, *more: str) -> PretrainRecipe:
    return tiny_recipe("train.global_batch=16", f"train.micro_batch={micro_batch}", *more)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two ranks with four pairs each, as an earlier version left it."""
    run = Run(tmp_path / "a")
    run.begin(recipe(4), {}, ["mu"])
    store.save(run.checkpoints, store.Checkpoint(1, {"rng": {"cpu.0": torch.zeros(1)}}, {"ranks": 2}), 1)
    return run


def ranks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(world, "size", lambda: number)


@pytest.mark.parametrize(
    ("micro_batch", "number", "pairs"), [(4, 2, 8), (4, 4, 16), (0, 1, 16), (0, 4, 16), (2, 1, 2)]
)
def test_pairs_of_a_pass(micro_batch: int, number: int, pairs: int) -> None:
    assert pairs_per_pass(recipe(micro_batch), number) == pairs
    assert pairs_per_pass(recipe(micro_batch, "objectives.itc=0", "objectives.itm=0"), number) == 0


@pytest.mark.parametrize("recorded", [True, False])
def test_another_number_of_ranks_is_refused_unless_the_contrast_stays_or_is_meant_to_change(
    run: Run, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    if recorded:
        run.begin(recipe(4), {}, ["mu"], more={PAIRS: 8})
    ranks(monkeypatch, 4)
    with pytest.raises(CheckpointError) as caught:
        free_keys(run, recipe(4))
    assert "ITC and ITM contrasted 8 pairs until now, with 4 processes it would be 16" in str(caught.value)
    assert "give --num-processes 2" in str(caught.value)
    assert "-o train.change_contrast=true" in str(caught.value)
    assert free_keys(run, recipe(2)) == ("train.micro_batch",), "4 ranks of 2 pairs contrast 8"
    assert free_keys(run, recipe(4, "train.change_contrast=true")) == ("train.micro_batch",)
    assert free_keys(run, recipe(4, "train.global_batch=32")) == (), "another recipe, refused as one"
    ranks(monkeypatch, 2)
    assert free_keys(run, recipe(4)) == ("train.micro_batch",)
    # the recipe differs, which the run's own record names
    assert free_keys(run, recipe(2)) == ()


def test_the_record_follows_what_was_allowed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, 4)
    allowed = recipe(4, "train.change_contrast=true")
    run.begin(allowed, {}, ["mu"], free=free_keys(run, allowed), more={PAIRS: 16})
    assert free_keys(run, recipe(4)) == ("train.micro_batch",)
    ranks(monkeypatch, 2)
    with pytest.raises(CheckpointError, match="contrasted 16 pairs until now"):
        free_keys(run, recipe(4))


def test_a_run_without_a_checkpoint_has_no_contrast_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "a")
    ranks(monkeypatch, 4)
    assert free_keys(run, recipe(4)) == ()
    run.begin(recipe(4), {}, ["mu"], more={PAIRS: 8})
    assert free_keys(run, recipe(4)) == ()


def test_without_contrast_any_number_of_ranks_resumes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without = recipe(4, "objectives.itc=0", "objectives.itm=0")
    run.recipe.unlink()
    run.begin(without, {}, ["mu"])
    ranks(monkeypatch, 4)
    assert free_keys(run, without) == ("train.micro_batch",)
