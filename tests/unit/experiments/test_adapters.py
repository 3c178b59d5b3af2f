"""experiments/adapters.py: what each run changes, what is repeated, and what its tables say."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments import adapters as experiment
from experiments.adapters import (
    FILMS,
    FORMS,
    HEADS,
    MEASURED,
    OURS,
    PUBLISHED,
    SIZES,
    TASKS,
    THEIRS,
    Tuning,
    adapter_rows,
    adapters,
    head_difference,
    head_rows,
    page,
    tunings,
)
from experiments.codes import LEARNED, PAIRS, PHANTOM, Training
from medunifier_cli.data.shards import Shards
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe

TRUTH = [True, True, True, False, False, False]
SCORES = {"mlp": [0.9, 0.4, 0.6, 0.5, 0.1, 0.7], "two-linear": [0.9, 0.8, 0.6, 0.5, 0.1, 0.7]}


def overrides(command: list[str]) -> list[str]:
    return [value for option, value in pairwise(command) if option == "-o"]


def recipe_of(run: Training) -> PretrainRecipe:
    return load_recipe(run.command[1], overrides(run.command))


def test_a_form_changes_its_keys_in_a_recipe_and_nothing_else() -> None:
    runs = adapters([PHANTOM, PAIRS], 300, 3)
    for run in runs:
        recipe, (name, _, form) = recipe_of(run), run.variant.partition(" ")
        shipped, own = asdict(load_recipe(name).model.generator), asdict(recipe.model.generator)
        assert {key: own[key] for key in PUBLISHED} == FORMS[form]
        assert {key for key in own if own[key] != shipped[key]} <= {*SIZES, *PUBLISHED}
        assert {name for name, weight in recipe.objectives.weights().items() if weight} == {"tig"}
        assert (recipe.data.test, recipe.train.steps, recipe.train.seed) == ("valid", 300, run.seed)
    assert len({run.name for run in runs}) == len(runs)
    for data in ("phantom", "pairs"):
        tried = {(run.variant, run.seed) for run in runs if run.data.name == data}
        assert tried == {(f"small {form}", seed) for form in FORMS for seed in range(3)} | {
            (f"full {form}", seed) for form in (OURS, THEIRS) for seed in range(3)
        }


def test_recipes_for_real_films_have_the_published_form_and_the_demo_has_ours() -> None:
    for name in ("small", "full", "one-gpu"):
        own = asdict(load_recipe(name).model.generator)
        assert {key: own[key] for key in PUBLISHED} == PUBLISHED, "better on real pairs: docs/adapters.md"
    demo = asdict(load_recipe("demo").model.generator)
    assert {key: demo[key] for key in LEARNED} == LEARNED
    assert PUBLISHED == {
        "nonlinear": "linear-relu-linear", "upsample": "nearest", "residual": "bottleneck",
    }  # fmt: skip
    assert all(LEARNED[key] != value for key, value in PUBLISHED.items())


def test_both_heads_are_trained_alike() -> None:
    runs = tunings(list(TASKS), 2)
    recipes = [asdict(load_recipe(run.command[1], overrides(run.command), FinetuneRecipe)) for run in runs]
    assert len({run.name for run in runs}) == len(runs)
    for first, second in zip(recipes[::2], recipes[1::2], strict=True):
        assert (first["model"].pop("head"), second["model"].pop("head")) == HEADS
        assert first == second
    frozen = {run.way: recipe["model"]["freeze"] for run, recipe in zip(runs, recipes, strict=True)}
    assert frozen == {"frozen": True, "fine-tuned": False}


def finish(run: Training | Tuning, home: Path, values: dict[str, float]) -> None:
    """The result file of a run, made by hand."""
    path = run.result(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": [{"name": k, "value": v} for k, v in values.items()]}))


def test_difference_of_adapters_is_taken_between_runs_of_one_seed(tmp_path: Path) -> None:
    runs = adapters([PHANTOM], 300, 3)
    quality = {("ours", 0): 26.0, ("published", 0): 25.0, ("ours", 1): 20.0, ("published", 1): 19.0,
               ("ours", 2): 99.0, ("ours but upsample", 2): 99.5}  # fmt: skip
    for run in runs:
        value = quality.get((run.variant.removeprefix("small "), run.seed))
        if value is not None:
            finish(run, tmp_path, dict.fromkeys(MEASURED.values(), value))
    means = {row[2]: row for row in adapter_rows(runs, tmp_path, difference=False)}
    assert list(means) == ["ours", "published", "ours but upsample"]
    assert means["published"] == ["phantom", "small", "published", "0, 1", *["22.0 ± 38.1"] * len(MEASURED)]
    rows = [row[2:5] for row in adapter_rows(runs, tmp_path, difference=True)]
    # twice the same difference, so no spread; a seed without a partner is in no difference
    assert rows == [["published", "0, 1", "-1.0 ± 0.0"], ["ours but upsample", "2", "+0.5"]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two seeds of both heads on films, and on the phantom with the same label twice."""
    keys = [f"k{i}" for i in range(6)]
    index = {"subject": np.array([2**63 + i // 2 for i in range(6)], np.uint64)}
    opened = type("Opened", (SimpleNamespace,), {"__len__": lambda _: 6})(key=keys.__getitem__, index=index)
    monkeypatch.setattr(Shards, "open", lambda *_: opened)
    for run in tunings(list(TASKS), 2):
        # the first seed's heads are equally good
        scores = SCORES[run.head if run.seed else "mlp"]
        finish(run, tmp_path, {"fine-tuned auroc": roc_auc_score(TRUTH, scores)})
        lines = []
        for key, truth, score in zip(keys, TRUTH, scores, strict=True):
            if run.data == FILMS:
                row = {"truth": "pneumonia" if truth else "no pneumonia",
                       "scores": {"no pneumonia": 1 - score, "pneumonia": score}}  # fmt: skip
            else:
                row = {"truth": {"A": int(truth), "B": int(truth)}, "scores": {"A": score, "B": score}}
            lines.append(json.dumps({"key": key, **row}) + "\n")
        run.result(tmp_path).with_suffix(".samples.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("data", TASKS)
def test_difference_of_heads_is_that_of_scikit_learn(home: Path, data: str) -> None:
    gain = roc_auc_score(TRUTH, SCORES["two-linear"]) - roc_auc_score(TRUTH, SCORES["mlp"])
    one, two = ([Tuning("frozen", data, "0.1", head, seed) for head in HEADS] for seed in range(2))
    value, spread = head_difference([(one[0], one[1]), (two[0], two[1])], home)
    assert value == pytest.approx(gain / 2)
    assert spread.low <= value <= spread.high
    assert spread.low < spread.high


def test_rows_of_heads_hold_the_seeds_that_both_have(home: Path) -> None:
    runs = tunings(list(TASKS), 2)
    Tuning("fine-tuned", FILMS, "0.1", "mlp", 1).result(home).unlink()
    rows = {tuple(row[:3]): row[3:] for row in head_rows(runs, home)}
    assert list(rows) == [
        (way, *rest)
        for way in ("frozen", "fine-tuned")
        for rest in (("phantom", "10 %"), ("phantom", "100 %"), (FILMS, "10 %"))
    ]
    assert [cells[0] for cells in rows.values()] == ["0, 1"] * 5 + ["0"]
    mlp, linear = (100 * roc_auc_score(TRUTH, SCORES[head]) for head in HEADS)
    _, one, two, over_seeds, over_patients = rows["frozen", "phantom", "100 %"]
    assert one == f"{mlp:.1f} ± 0.0"
    assert two.startswith(f"{(mlp + linear) / 2:.1f} ± ")
    assert over_seeds.startswith(f"{(linear - mlp) / 2:+.1f} ± ")
    assert over_patients.startswith(f"{(linear - mlp) / 2:+.1f} (")
    assert rows["fine-tuned", FILMS, "10 %"][3] == "+0.0"


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    text = page(adapters([PHANTOM], 300, 1), tunings(["phantom"], 1), tmp_path)
    assert text.count("Nothing is finished yet.") == 3


def test_a_finished_run_is_not_repeated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(experiment, "mu", lambda command, *_: called.append(command))
    done, missing = (Tuning("frozen", FILMS, "0.1", "mlp", seed) for seed in (1, 7))
    for run in (done, missing):
        experiment.train(run, home)
    assert called == [missing.command]
