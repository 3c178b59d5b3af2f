"""`mu finetune` on a small phantom: bit-equal after a kill, one look at the test split, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import fill_pretrained, is_run_of
from medunifier_cli.cli import mu
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import MuError
from medunifier_cli.files import sha256
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.run.log import read_log, without_times
from medunifier_cli.run.record import Run
from medunifier_cli.stages import finetune
from tests.run.finetune_runs import QUICK, FinetuneRuns


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> FinetuneRuns:
    return FinetuneRuns(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def done(runs: FinetuneRuns, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run that others are compared with; any number of labels a sample."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, runs.tune(folder)


def final_state(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on how often a run was stopped."""
    (step,) = store.steps(folder / "checkpoints")
    files = sorted((folder / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))
    lines = read_log(folder / "log.jsonl")
    return {
        "step": step,
        "tensors": {path.name: sha256(path) for path in files},
        "best": [path.joinpath("DONE").read_text() for path in (folder / "best").iterdir()],
        "log": [without_times(line) for line in lines],
        "results": {path.name: path.read_bytes() for path in (folder / "results").iterdir()},
    }


class Killed(Exception):
    """Stands for a kill: nothing of ours catches it."""


def test_killed_again_and_again_ends_bit_equal(
    runs: FinetuneRuns, done: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = finetune.Finetuning.step
    for last in (2, 7, 11, 13):  # before a checkpoint, and after a validation that no checkpoint holds yet

        def die(self: Any, module: Any, batch: Any, at: int, micro: int, last: int = last) -> Any:
            if at == last:
                raise Killed
            return step(self, module, batch, at, micro)

        monkeypatch.setattr(finetune.Finetuning, "step", die)
        with pytest.raises(Killed):
            runs.tune(tmp_path / "run")
    monkeypatch.setattr(finetune.Finetuning, "step", step)
    runs.tune(tmp_path / "run")
    assert final_state(tmp_path / "run") == final_state(done[0])


def test_the_best_validation_chooses_and_its_weights_are_kept(done: tuple[Path, dict[str, Any]]) -> None:
    folder, result = done
    valid = {
        line["step"]: line["auroc"] for line in read_log(folder / "log.jsonl") if line["event"] == "valid"
    }
    assert sorted(valid) == [5, 10, 14]
    best = max(valid.values())
    assert result["best"]["validation"] == best
    assert valid[result["checkpoint"]["step"]] == best
    assert store.steps(folder / "best") == [result["checkpoint"]["step"]]
    assert result["checkpoint"]["hash"] == store.identity(folder / "best", result["checkpoint"]["step"])


def test_an_early_best_epoch_is_not_overwritten_by_later_ones(
    runs: FinetuneRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that fall from validation to validation: the first one's weights are kept and measured."""
    real, falling = finetune.scores_of, iter((0.9, 0.8, 0.7))

    def fall(*arguments: Any) -> Any:
        found = real(*arguments)
        found.scores["auroc"] = next(falling)
        return found

    monkeypatch.setattr(finetune, "scores_of", fall)
    result = runs.tune(tmp_path / "run", "train.checkpoint_every=5", "train.keep=3")
    assert result["checkpoint"]["step"] == 5
    early = store.load(tmp_path / "run" / "checkpoints" / "step-00000005").tensors["model"]
    kept = store.load(tmp_path / "run" / "best" / "step-00000005").tensors["model"]
    assert all(bool((kept[name] == early[name]).all()) for name in kept)


def test_the_test_split_is_measured_once(
    runs: FinetuneRuns,
    done: tuple[Path, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(finetune, "measure", refuse)
    runs.tune(done[0])
    said = capsys.readouterr()
    assert "is complete: 14 steps" in said.err
    assert "fine-tuned auroc" in said.out


def test_result_says_how_it_was_made_and_equals_scikit_learn(
    runs: FinetuneRuns, done: tuple[Path, dict[str, Any]]
) -> None:
    folder, result = done
    for field in (
        "protocol",
        "n",
        "seed",
        "checkpoint",
        "data",
        "versions",
        "fraction",
        "pretrained",
        "per_class",
    ):
        assert field in result, field
    assert (result["head"], result["frozen"], result["balanced"]) == ("linear", False, False)
    assert result["rates"].keys() == {"model", "head"}
    lines = (folder / "results" / "finetune-phantom-test.samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert result["n"] == len(rows) == len({row["key"] for row in rows}) == 40
    shards = Shards.open(runs.shards, "test")
    truths = {shards.key(i): shards.meta(i)["labels"] for i in range(40)}
    for name in result["classes"]:
        truth, scores = [truths[row["key"]][name] for row in rows], [row["scores"][name] for row in rows]
        assert result["per_class"][name]["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    (auroc,) = (metric for metric in result["metrics"] if metric["name"] == "fine-tuned auroc")
    mean = np.mean([row["auroc"] for row in result["per_class"].values()])
    assert auroc["value"] == pytest.approx(mean)
    assert auroc["low"] <= auroc["value"] <= auroc["high"]


def test_one_class_a_sample_leaves_the_others_out_and_says_so(runs: FinetuneRuns, tmp_path: Path) -> None:
    result = runs.tune(tmp_path / "run", "model.loss=cross_entropy", "model.metric=", "model.balance=true")
    shards = Shards.open(runs.shards, "test")
    labels = [shards.meta(i)["labels"] for i in range(40)]
    single = sum(sum(row[name] for name in result["classes"]) == 1 for row in labels)
    assert result["n"] == single
    assert result["left_out"]["test"] == {"unreadable": 0, "without_label": 40 - single}
    assert result["best"]["metric"] == "accuracy"  # the phantom's own headline
    assert np.sum(result["confusion"]) == single


def test_frozen_features_are_those_of_a_model_that_does_not_move(
    runs: FinetuneRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unclipped = "optim.clip_norm=0"  # a norm over both would see gradients of weights that stay
    runs.tune(tmp_path / "frozen", "model.freeze=true", unclipped)
    runs.tune(tmp_path / "still", "optim.model_lr=0", unclipped)
    frozen, still = (read_log(tmp_path / name / "log.jsonl") for name in ("frozen", "still"))
    assert len(frozen) == len(still) == 17
    for one, other in zip(frozen, still, strict=True):
        assert one["total"] == pytest.approx(other["total"], rel=1e-4)
    caches = sorted((runs.pretrained / "cache").glob("queries-*.h5"))
    before = {path: path.stat().st_mtime_ns for path in caches}
    assert len(caches) == 3
    runs.tune(tmp_path / "again", "model.freeze=true", "train.seed=1")
    assert {path: path.stat().st_mtime_ns for path in caches} == before
    assert not any(name.startswith("model.") for name in _weights(tmp_path / "frozen"))


def _weights(folder: Path) -> Mapping[str, Any]:
    found = store.newest(folder / "best")
    assert found is not None
    return found.tensors["model"]


def test_a_fraction_is_recorded_with_its_ids(runs: FinetuneRuns, tmp_path: Path) -> None:
    result = runs.tune(tmp_path / "run", "data.fraction=0.5", "data.fraction_seed=4")
    train = json.loads((tmp_path / "run" / "samples.json").read_text())["train"]
    assert (train["n"], train["seed"], len(train["keys"])) == (30, 4, 30)
    assert set(train["keys"]) < {f"phantom-0-train-{i:06d}" for i in range(60)}
    assert (result["fraction"], result["train"]["n"], result["n"]) == (0.5, 30, 40)


def test_an_unreadable_image_is_left_out_and_counted(
    runs: FinetuneRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Path(shutil.copytree(runs.shards, tmp_path / "shards"))
    opened = Shards.open(shards, "train")
    row = opened.index[7]
    path = shards / opened.names[int(row["shard"])]
    body = bytearray(path.read_bytes())
    start = int(row["image_offset"])
    body[start : start + int(row["image_size"])] = bytes(int(row["image_size"]))
    path.write_bytes(bytes(body))
    result = runs.tune(tmp_path / "run", shards=shards)
    assert "1 of 60 images cannot be read; they are left out" in capsys.readouterr().err
    assert result["train"]["n"] == 59
    assert result["train"]["unreadable"] == [opened.key(7)]
    assert result["left_out"]["train"]["unreadable"] == 1


@pytest.fixture
def tuned(done: tuple[Path, Any]) -> Path:
    return done[0]


def test_a_run_of_another_stage_is_no_start_and_is_not_taken_for_pretrained(
    runs: FinetuneRuns, tuned: Path
) -> None:
    assert is_run_of(Run(runs.pretrained), PretrainRecipe)
    assert not is_run_of(Run(tuned), PretrainRecipe)
    with pytest.raises(MuError, match=r"is a fine-tuned run; `mu finetune` needs a pre-trained one: --run "):
        fill_pretrained(runs.recipe(), str(tuned))
    with pytest.raises(MuError, match="no run `nothing`"):
        fill_pretrained(runs.recipe(), "nothing")


def test_goes_on_from_the_run_it_started_from_and_not_from_a_newer_one(
    runs: FinetuneRuns, tuned: Path
) -> None:
    recipe = load_recipe("finetune-demo", (), FinetuneRecipe)
    assert fill_pretrained(recipe, "", tuned).model.pretrained == str(runs.pretrained)


def test_shards_that_changed_under_a_run_are_refused(
    runs: FinetuneRuns, done: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(done[0], tmp_path / "run"))
    path = folder / "samples.json"
    path.write_text(path.read_text().replace('"shards": "', '"shards": "0', 1))
    with pytest.raises(MuError, match="has changed since this run selected its samples"):
        runs.tune(folder)


def test_command_line_names_the_run_after_recipe_and_fraction(
    runs: FinetuneRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MU_RUNS", str(tmp_path))
    shutil.copytree(runs.pretrained, tmp_path / "base")
    settings = (*QUICK, f"data.shards={runs.shards}", "data.fraction=0.5", "train.steps=2")
    line = ["finetune", "finetune-demo", *(word for setting in settings for word in ("-o", setting))]
    result = CliRunner().invoke(mu, line)
    assert result.exit_code == 0, result.output
    assert "finetune uses the newest run that fits" in result.stderr
    assert "fine-tuned auroc" in result.stdout
    recipe = load_recipe(tmp_path / "finetune-demo-0.5" / "recipe.yaml", (), FinetuneRecipe)
    assert recipe.model.pretrained == "base"
    wrong = CliRunner().invoke(mu, ["finetune", "demo"])
    assert wrong.exit_code == 1
    assert "is a recipe for `mu pretrain`, not for `mu finetune`" in wrong.stderr
