"""Single checks of `mu check`: what each finds and what each raises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medunifier_cli.checkpoint import store
from medunifier_cli.errors import CheckpointError, DataError, MuError
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneTrainConfig
from medunifier_cli.stages.check import shared
from medunifier_cli.stages.check.finetune import check_finetune
from medunifier_cli.stages.check.fit_prior import check_fit_prior
from medunifier_cli.stages.check.pretrain import check_contrast_batch, check_model
from medunifier_cli.stages.check.shared import (
    Check,
    ProblemsError,
    check_batch,
    check_run_encoder,
    check_starting_run,
    run_check,
)
from medunifier_cli.stages.codes import check_codes
from tests.tiny import tiny_recipe


def test_a_check_that_returns_is_ok_and_each_line_it_raises_is_a_problem() -> None:
    def check(folder: str, count: int) -> str:
        if count:
            raise ProblemsError([f"{folder}/{i}: broken" for i in range(count)])
        return folder

    assert list(run_check("shards", check, "here", 0)) == [Check("shards", "here", True)]
    assert list(run_check("shards", check, "here", count=2)) == [
        Check("shards", "here/0: broken", False),
        Check("shards", "here/1: broken", False),
    ]


def test_an_error_that_is_not_the_users_is_not_hidden() -> None:
    def check() -> str:
        raise KeyError("a mistake in mu")

    with pytest.raises(KeyError):
        list(run_check("shards", check))


def settings(global_batch: int, micro_batch: int = 0) -> FinetuneTrainConfig:
    return FinetuneTrainConfig(global_batch=global_batch, micro_batch=micro_batch)


def test_batch() -> None:
    assert check_batch(settings(24, 4), 2, "images") == "24 images = 3 x 4 on 2 processes"
    assert check_batch(settings(24), 2, "images") == "24 images = 1 x 12 on 2 processes"
    assert check_batch(settings(24), 0, "images").endswith("1 process (one per GPU; counted here as one)")
    for train, ranks in ((settings(24, 5), 1), (settings(24, 4), 4), (settings(24), 5), (settings(1), 2)):
        with pytest.raises(MuError, match=rf"global_batch: {train.global_batch} is not a multiple of"):
            check_batch(train, ranks, "images")


def test_negatives_are_counted_over_one_pass_of_all_processes() -> None:
    recipe = tiny_recipe("train.global_batch=32", "train.micro_batch=8")
    assert check_contrast_batch(recipe, 2).endswith("ITC and ITM contrast among 16")


def test_model_counts_parameters_and_refuses_sizes_that_do_not_fit() -> None:
    assert check_model(tiny_recipe()).endswith("of them trained")
    with pytest.raises(MuError, match="60"):
        check_model(tiny_recipe("data.image_size=60"))


@pytest.mark.parametrize(
    ("prepared", "result"), [(32, None), (64, "64"), (224, "64, from 224 in the shards")]
)
def test_image_size(tmp_path: Path, prepared: int, result: str | None) -> None:
    (tmp_path / "manifest.json").write_text(f'{{"image": {{"size": {prepared}}}}}')
    if result is not None:
        assert shared.check_image_size("rsna", 64, tmp_path) == result
        return
    with pytest.raises(DataError, match=r"64 pixels wanted, the shards hold 32; .* rsna --size 64"):
        shared.check_image_size("rsna", 64, tmp_path)
    # a table under a name of its own: the command would need what only the user knows
    (tmp_path / "manifest.json").write_text('{"image": {"size": 32}, "plugin": "table"}')
    with pytest.raises(DataError, match="with the same --raw and -o, --size 64 and another --name"):
        shared.check_image_size("clinic", 64, tmp_path)


def pretrained(runs: Path, name: str, recipe: PretrainRecipe) -> Path:
    """A folder that looks like a run with a checkpoint."""
    store.save(runs / name / "checkpoints", store.Checkpoint(1, {}, {}), keep=1)
    (runs / name / "recipe.yaml").write_text(dump_recipe(recipe))
    return runs / name


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MU_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_starting_run(runs: Path) -> None:
    recipe = tiny_recipe("data.dataset=phantom")
    folder = pretrained(runs, "base", recipe)
    checks, found = check_starting_run("base", "finetune")
    assert checks == [Check("pre-trained run", f"{folder}, trained on phantom", True)]
    assert found == recipe
    checks, found = check_starting_run("bsae", "finetune")
    assert (checks[0].ok, found) == (False, None)
    assert "did you mean `base`?" in checks[0].result


def test_the_weights_that_a_stage_starts_from_are_those_of_the_run() -> None:
    assert check_run_encoder(tiny_recipe()) == "from the pre-trained run"
    frozen = tiny_recipe("model.vit.frozen=true", "model.vit.weights=nowhere/encoder")
    with pytest.raises(MuError, match="nowhere/encoder"):  # such weights are in no checkpoint
        check_run_encoder(frozen)


def test_a_run_without_codes_fails_for_priors_alone(runs: Path) -> None:
    folder = pretrained(runs, "base", tiny_recipe("objectives.tig=0"))
    assert check_starting_run("base", "finetune")[1] is not None
    checks, found = check_starting_run("base", "fit-prior", require=check_codes)
    assert found is None
    assert checks == [
        Check("pre-trained run", f"{folder}: trained without TIG, so it has no codes to fit priors on", False)
    ]
    with pytest.raises(CheckpointError, match="trained without TIG"):
        check_codes(tiny_recipe("objectives.tig=0"), folder)


def test_checks_that_need_the_run_are_left_out_without_it(runs: Path) -> None:
    from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
    from medunifier_cli.recipe.schema_prior import PriorRecipe

    finetune = load_recipe("finetune-demo", (), FinetuneRecipe)
    names = {check.name: check.ok for check in check_finetune(finetune)}
    assert names == {
        "data set": True, "head": True, "pre-trained run": False, "shards": False, "batch": True,
        "precision": True, "compiled": True, "runs folder": True,
    }  # fmt: skip
    prior = load_recipe("prior-demo", (), PriorRecipe)
    names = {check.name: check.ok for check in check_fit_prior(prior)}
    assert names == {"pre-trained run": False, "batch": True, "precision": True, "runs folder": True}


def test_fp16_on_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node often has none, so it is no problem of the recipe."""
    import torch

    from medunifier_cli.recipe.schema_train import LoopConfig
    from medunifier_cli.stages.check.shared import check_device

    for available, result in ((True, r"fp16$"), (False, r"fp16, which needs a GPU: this machine has none")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert re.match(result, check_device(LoopConfig(precision="fp16")))
    assert check_device(LoopConfig(precision="bf16")) == "bf16"
