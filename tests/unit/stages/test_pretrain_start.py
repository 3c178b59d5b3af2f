"""What is wrong with the data of a pre-training run is found before it trains, or has a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunifier_cli.distributed import world
from medunifier_cli.errors import DataError
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.stages.pretrain import _check_start, run_pretraining
from tests.run.conftest import write_split

SPLITS = {"train": 4, "valid": 2, "test": 0}


def shards(tmp_path: Path, **counts: int) -> Path:
    for seed, (split, count) in enumerate({**SPLITS, **counts}.items()):
        write_split(tmp_path / "shards", split, count, seed)
    return tmp_path / "shards"


def test_an_empty_split_for_the_last_measurement_is_found_first(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    recipe = load_recipe("demo", (f"data.shards={folder}", "train.tensorboard=true"))
    with pytest.raises(DataError, match=r"split test has no samples; prepare it, or name another"):
        run_pretraining(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_split_names_the_key_and_how_to_do_without_it(tmp_path: Path) -> None:
    folder = shards(tmp_path, test=2)
    with pytest.raises(DataError, match=r"no split 'exam'; .*data\.test=SPLIT, or none with -o data\.test=$"):
        _check_start(load_recipe("demo", ("data.test=exam",)), folder)
    with pytest.raises(DataError, match=r"no split 'exam'; .* -o data\.train=SPLIT$"):
        _check_start(load_recipe("demo", ("data.train=exam",)), folder)
    hashes, _ = _check_start(load_recipe("demo", ("data.test=",)), folder)[0]
    assert hashes.keys() == {"train", "valid"}


def test_ranks_compare_recipe_code_and_shards_but_not_where_these_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(tmp_path, test=2)
    recipe = load_recipe("demo", (f"data.shards={folder}",))
    (hashes, features), facts = _check_start(recipe, folder)
    assert features == dict.fromkeys(hashes), "none is read unless the recipe says so"
    assert facts == {}, "alone there is nobody to differ from"
    assert hashes.keys() == {"train", "valid", "test"}
    monkeypatch.setattr(world, "size", lambda: 2)
    facts = _check_start(recipe, folder)[1]
    assert list(facts) == ["the recipe", "the code", "the shards"]
    assert facts["the recipe"]["optim.peak_lr"] == recipe.optim.peak_lr
    assert "data.shards" not in facts["the recipe"]
    assert {"torch", "source", "medunifier"} <= facts["the code"].keys()
    assert facts["the shards"].keys() == {"train", "valid", "test"}
    (tmp_path / "other").mkdir()
    other = _check_start(recipe, shards(tmp_path / "other", test=3))[1]
    assert other["the shards"]["test"] != facts["the shards"]["test"]
    assert other["the shards"]["train"] == facts["the shards"]["train"]
