"""The demo's verbs one after the other on a small phantom, and what they say when something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier_cli.evaluate.retrieval import prompts
from tests.run.small_run import RECIPE, another_process, call


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and one short run under one folder."""
    root = tmp_path_factory.mktemp("road")
    code, printed = call(
        root, "prepare", "phantom", "--size", 32, "-o", "train=60", "-o", "valid=20", "-o", "test=40"
    )
    assert code == 0, printed
    code, printed = call(root, "pretrain", RECIPE, "--name", "road")
    assert code == 0, printed
    assert "reconstruction PSNR (dB)" in printed
    return root


def test_results_say_how_they_were_made_and_repeat(road: Path) -> None:
    """The second time without the cache and in another process: nothing depends on what ran before."""
    files = {}
    for verb, name in (("retrieve", "retrieval"), ("zeroshot", "zeroshot")):
        code, printed = call(road, verb)
        assert code == 0, printed
        path = road / "runs" / "road" / "results" / f"{name}-phantom-test.json"
        files[path] = path.read_bytes()
        result = json.loads(files[path])
        for field in ("protocol", "n", "seed", "checkpoint", "data", "versions", "metrics"):
            assert field in result, field
        assert result["n"] == 20  # half of the phantom's cases have exactly one finding
        assert all(metric["floor"] is not None for metric in result["metrics"])
        path.unlink()
    shutil.rmtree(road / "runs" / "road" / "cache")
    another_process(road, ["retrieve"], ["zeroshot"])
    for path, content in files.items():
        assert path.read_bytes() == content


def test_score_prints_every_number_of_the_result_files(road: Path) -> None:
    assert call(road, "retrieve")[0] == 0
    code, printed = call(road, "score", "road", "--format", "csv")
    assert code == 0, printed
    for path in (road / "runs" / "road" / "results").glob("*.json"):
        for metric in json.loads(path.read_text())["metrics"]:
            assert repr(metric["value"]) in printed, metric["name"]


def test_a_cache_of_another_checkpoint_is_not_used(road: Path) -> None:
    import h5py

    assert call(road, "retrieve")[0] == 0
    cache = road / "runs" / "road" / "cache" / "embeddings-phantom-test.h5"
    good = (road / "runs" / "road" / "results" / "retrieval-phantom-test.json").read_bytes()
    with h5py.File(cache, "r+") as file:
        file["text"][...] = file["text"][...][::-1]
        file.attrs["made_of"] = "another checkpoint"
    assert call(road, "retrieve")[0] == 0
    assert (road / "runs" / "road" / "results" / "retrieval-phantom-test.json").read_bytes() == good


def test_reconstruction_picture_shows_the_input_above(road: Path) -> None:
    pictures = sorted((road / "runs" / "road" / "samples").glob("reconstructions-*.png"))
    assert pictures
    with Image.open(pictures[-1]) as picture:
        grey = np.asarray(picture.convert("L"), dtype=float)
    assert grey.shape[0] == 2 * 32 + 2
    assert grey[:32].std() > 20  # a radiograph, not a flat field


def test_a_run_without_checkpoint_says_so(road: Path) -> None:
    empty = road / "runs" / "empty"
    empty.mkdir(exist_ok=True)
    shutil.copy(road / "runs" / "road" / "recipe.yaml", empty)
    code, printed = call(road, "retrieve", "--run", "empty")
    assert code == 1
    assert "no intact checkpoint" in printed
    assert "Traceback" not in printed
    (empty / "recipe.yaml").unlink()
    code, printed = call(road, "retrieve", "--run", "empty")
    assert code == 1
    assert "not a run" in printed


def test_another_recipe_does_not_overwrite_a_run(road: Path) -> None:
    before = (road / "runs" / "road" / "log.jsonl").read_bytes()
    code, printed = call(road, "pretrain", RECIPE, "--name", "road", "-o", "optim.peak_lr=0.5")
    assert code == 1
    assert "optim.peak_lr was 0.001, now 0.5" in printed
    assert (road / "runs" / "road" / "log.jsonl").read_bytes() == before


def test_fresh_moves_the_old_run_aside(road: Path) -> None:
    code, printed = call(road, "pretrain", RECIPE, "--name", "twice", "-o", "train.steps=1")
    assert code == 0, printed
    code, printed = call(road, "pretrain", RECIPE, "--name", "twice", "-o", "train.steps=2", "--fresh")
    assert code == 0, printed
    assert (road / "runs" / "twice.old-1" / "checkpoints").is_dir()


def test_a_shard_cut_in_half(road: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(road / "data" / "shards" / "phantom", shards)
    shard = shards / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    code, printed = call(road, "pretrain", RECIPE, "--name", "cut", "-o", f"data.shards={shards}")
    assert code == 1
    assert "train-000000.tar" in printed
    assert "Traceback" not in printed
    assert not (road / "runs" / "cut").exists()


def test_missing_shards_name_the_verb_that_makes_them(road: Path, tmp_path: Path) -> None:
    code, printed = call(tmp_path, "pretrain", RECIPE)
    assert code == 1
    assert "mu prepare" in printed
    assert "Traceback" not in printed


def test_prompts_file(road: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "prompts.yaml"
    wrong.write_text("Edema: [there is edema]\n")
    code, printed = call(road, "zeroshot", "--prompts", wrong)
    assert code == 1
    assert "no prompts for Atelectasis" in printed


def test_drawn_prompts_depend_on_the_seed_alone() -> None:
    texts = {"a": [f"text {i}" for i in range(30)], "b": ["only one"]}
    drawn = prompts.sample_prompts(texts, ("a", "b"), 15, seed=3)
    assert drawn == prompts.sample_prompts(texts, ("a", "b"), 15, seed=3)
    assert drawn != prompts.sample_prompts(texts, ("a", "b"), 15, seed=4)
    assert len(set(drawn["a"])) == 15
    assert drawn["b"] == ["only one"]
    assert len(prompts.sample_prompts(texts, ("a",), 0, seed=3)["a"]) == 30
