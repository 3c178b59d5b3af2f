"""Shards that change between two starts of a pre-training run are refused; moved ones are the same data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medunifier_cli.errors import CheckpointError
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.stages.pretrain import run_pretraining
from tests.run.conftest import write_split


def pretrain(recipe: Path, shards: Path, folder: Path) -> None:
    changes = (
        "train.steps=1",
        "data.workers=0",
        "data.test=",
        "train.valid_every=0",
        f"data.shards={shards}",
    )
    run_pretraining(load_recipe(recipe, changes), folder)


def test_other_shards_are_refused_and_moved_ones_are_not(
    recipe: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, run = Path(shutil.copytree(shards, tmp_path / "shards")), tmp_path / "run"
    pretrain(recipe, here, run)
    recorded = json.loads((run / "provenance.json").read_text())["data"]
    write_split(here, "train", 40, seed=7)  # prepared anew, of the same size
    with pytest.raises(CheckpointError, match=r"shards: split 'train' of phantom has changed since"):
        pretrain(recipe, here, run)
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["data"] == recorded
    assert len(provenance["starts"]) == 1
    there = Path(shutil.copytree(shards, tmp_path / "elsewhere" / "shards"))
    moved = Path(shutil.move(run, tmp_path / "elsewhere" / "run"))
    capsys.readouterr()
    pretrain(recipe, there, moved)
    assert f"{moved} is complete: 1 steps" in capsys.readouterr().err
