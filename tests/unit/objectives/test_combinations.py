"""Each combination of objectives trains, resumes bit for bit and is evaluated; ITM without ITC is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.data.contract import Batch
from medunifier_cli.data.loader import collate
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import RecipeError
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.tig import TextGroundedImageGeneration
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.log import without_times
from medunifier_cli.run.record import Run
from medunifier_cli.stages.heldout import evaluate
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.loop import fit
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import SMALL

NAMES = ("itc", "itm", "itg", "tig")
ALL = [chosen for count in range(1, 5) for chosen in combinations(NAMES, count)]
QUICK = [("itg",), ("itc", "itm"), ("itg", "tig"), NAMES]
"""Each objective with and without each other one."""
REFUSED = [chosen for chosen in ALL if "itm" in chosen and "itc" not in chosen]
ALLOWED = [chosen for chosen in ALL if chosen not in REFUSED]
AUTHORS_ADAPTERS = (
    "model.generator.nonlinear=linear-relu-linear", "model.generator.upsample=nearest",
    "model.generator.residual=bottleneck",
)  # fmt: skip
TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)
METRICS = {
    "itm": {"ITM accuracy, random pairs", "ITM accuracy, hard pairs"},
    "tig": {"reconstruction PSNR", "perplexity, top codebook", "perplexity, bottom codebook",
            "perplexity at one position, top codebook", "perplexity at one position, bottom codebook",
            "dead codes, top codebook", "dead codes, bottom codebook"},
}  # fmt: skip
"""What a held-out split is measured by with this objective."""


def recipe_of(chosen: tuple[str, ...], *overrides: str) -> PretrainRecipe:
    """Dropout, revived codes and two micro-batches a step, so that whatever a resumed run forgets matters."""
    loop = (
        "data.workers=0", "train.global_batch=4", "train.micro_batch=2", "train.log_every=1",
        "train.checkpoint_every=2", "train.keep=2", "optim.warmup=0.0", "model.qformer.dropout=0.1",
        "model.generator.revive_dead_codes=true", "model.generator.ema_decay=0.5",
        "model.generator.revive_below=0.6", "train.steps=4",
    )  # fmt: skip
    weights = (f"objectives.{name}={float(name in chosen)}" for name in NAMES)
    recipe: PretrainRecipe = load_recipe("full", [*SMALL, *loop, *weights, *overrides])
    return recipe


Stage = Callable[[PretrainRecipe, Run], Pretraining]


@pytest.fixture
def source(tmp_path: Path) -> SplitSource:
    """Twelve pairs, which are trained on, validated and measured alike."""
    recipe, folder = recipe_of(("itc",)), write_split(tmp_path / "shards", "train", 12, per_shard=12)
    opened = SplitSource(Shards.open(folder, "train"), TOKENIZER, recipe.data, recipe.text, HandMade())
    (folder / "manifest.json").write_text("{}")  # results keep its hash
    return opened


@pytest.fixture
def stage_of(source: SplitSource) -> Stage:
    """The pre-training stage in its run folder."""

    def stage(recipe: PretrainRecipe, run: Run) -> Pretraining:
        run.begin(recipe, {}, ["mu", "pretrain"])
        TOKENIZER.save(run.tokenizer)
        return Pretraining(recipe, run, source, source, TOKENIZER, torch.device("cpu"))

    return stage


class Killed(Exception):
    """Stands for a kill: nothing of ours catches it."""


def log_of(run: Run) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    return [without_times(line) for line in lines]


def name_of(chosen: tuple[str, ...]) -> str:
    return "+".join(chosen)


def test_there_are_fifteen_and_four_of_them_are_refused() -> None:
    assert (len(set(ALL)), len(ALLOWED), len(REFUSED)) == (15, 11, 4)


@pytest.mark.parametrize("chosen", REFUSED, ids=name_of)
def test_itm_without_itc_is_refused_in_one_line(chosen: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=r"objectives\.itm.*needs objectives\.itc") as refused:
        recipe_of(chosen)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("chosen", "overrides"),
    [
        *(pytest.param(chosen, (), marks=() if chosen in QUICK else pytest.mark.slow) for chosen in ALLOWED),
        (("tig",), AUTHORS_ADAPTERS),
    ],
    ids=[*map(name_of, ALLOWED), "tig with the authors' adapters"],
)
def test_it_trains_resumes_and_is_evaluated(
    chosen: tuple[str, ...], overrides: tuple[str, ...], tmp_path: Path, stage_of: Stage,
    source: SplitSource, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe, whole, parts = recipe_of(chosen, *overrides), Run(tmp_path / "whole"), Run(tmp_path / "parts")
    assert fit(stage_of(recipe, whole), whole, accelerator, recipe.train, recipe.optim) == 4

    stage = stage_of(recipe, parts)
    step = stage.step

    def die(module: Any, batch: Batch, at: int, micro: int) -> Any:
        if at == 2:
            raise Killed
        return step(module, batch, at, micro)

    monkeypatch.setattr(stage, "step", die)
    with pytest.raises(Killed):
        fit(stage, parts, accelerator, recipe.train, recipe.optim)
    assert store.steps(parts.checkpoints) == [2]
    assert fit(stage_of(recipe, parts), parts, accelerator, recipe.train, recipe.optim) == 2

    ends = [store.newest(run.checkpoints) for run in (whole, parts)]
    for kind in ("model", "optimizer", "rng"):
        one, other = (end.tensors[kind] for end in ends if end is not None)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert log_of(whole) == log_of(parts)
    for line in log_of(parts):
        assert {*chosen, "total"} <= line.keys()
        assert not {*NAMES} - {*chosen} & line.keys()

    trained = restore(parts, torch.device("cpu"))
    metrics = evaluate(trained, source, source, "train", source.folder)
    measured = {name for objective in chosen for name in METRICS.get(objective, set())}
    assert {metric.name for metric in metrics} == measured
    assert bool(list(parts.results.glob("*.json"))) == bool(measured)
    batch = collate([source.sample(i) for i in range(3)], range(3))
    with torch.no_grad():
        memory = trained.model.encode_image(pixels(batch.image_B1HW))
        encoded = [memory.query_BQD, trained.model.encode_text(batch.text)]
        if "itg" in chosen:
            encoded.append(trained.model.decode_text(memory, batch.text))
    assert all(bool(tensor.isfinite().all()) for tensor in encoded)


@pytest.mark.parametrize(
    ("level", "place", "says"), [("top", 1.02, True), ("bottom", 1.2, True), ("top", 3.0, False)]
)
def test_codes_that_do_not_depend_on_the_image_are_doubted(level: str, place: float, says: bool) -> None:
    names = [f"{name}_{one}" for name in ("perplexity", "place_perplexity") for one in ("top", "bottom")]
    line = TextGroundedImageGeneration().doubt(
        dict.fromkeys(names, 9.0) | {f"place_perplexity_{level}": place}
    )
    assert bool(line) == says
    if says:
        assert f"the {level} codes" in line
        assert "model.generator.codebook=ema" in line
