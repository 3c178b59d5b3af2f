"""experiments/codes.py: what it trains with, what it repeats, and the rows of its tables."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path

import pytest

from experiments import codes
from experiments.codes import LEARNED, PAIRS, PHANTOM, SIZES, VARIANTS, Training, plan, row, table
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import GeneratorConfig, PretrainRecipe


def recipe_of(run: Training) -> PretrainRecipe:
    """The recipe that the run's command makes."""
    _, name, *rest = run.command
    overrides = [value for option, value in pairwise(rest) if option == "-o"]
    return load_recipe(name, overrides)


def test_long_runs_have_the_generator_of_full_but_for_its_sizes() -> None:
    full = asdict(load_recipe("full").model.generator)
    _, long = plan([PHANTOM, PAIRS], 2000, 3, 1000)
    assert [(run.data.name, run.seed) for run in long] == [
        (name, seed) for seed in (0, 1, 2, 0, 1, 2, 0) for name in ("phantom", "pairs")
    ]
    for run in long:
        recipe = recipe_of(run)
        own = asdict(recipe.model.generator)
        ours = set(LEARNED) if run.variant == "full, our adapters" else set()
        assert {key for key in own if own[key] != full[key]} == set(SIZES) | ours
        assert (recipe.train.steps, recipe.train.seed) == (2000, run.seed)
        few, every = {"itc": 1.0, "tig": 1.0}, load_recipe("full").objectives.weights()
        assert recipe.objectives.weights() == (every if "four" in run.variant else few)
        assert recipe.data.test == {"phantom": "test", "pairs": "valid"}[run.data.name]


def test_each_pilot_changes_of_the_paper_what_its_table_says() -> None:
    paper = asdict(GeneratorConfig())
    pilots, _ = plan([PHANTOM], 2000, 3, 1000)
    assert [run.variant for run in pilots] == list(VARIANTS)
    for run in pilots:
        recipe = recipe_of(run)
        own = asdict(recipe.model.generator)
        assert {key: own[key] for key in LEARNED} == LEARNED
        changed = {key: own[key] for key in own if own[key] != paper[key] and key not in {*SIZES, *LEARNED}}
        assert changed == VARIANTS[run.variant]
        assert recipe.data.test == "valid", "nothing is chosen by the test split"
    assert {"codebook", "beta"}.isdisjoint(key for changes in VARIANTS.values() for key in changes)
    assert set(SIZES) < {field.name for field in fields(GeneratorConfig)}


def test_runs_have_names_of_their_own() -> None:
    pilots, long = plan([PHANTOM, PAIRS], 2000, 3, 1000)
    names = [run.name for run in (*pilots, *long)]
    assert len(set(names)) == len(names)


def finished(run: Training, home: Path) -> None:
    """A run folder as `mu pretrain` leaves it, with these numbers."""
    levels = {"top": (400.0, 210.0, 30.25), "bottom": (12.0, 350.0, 6.0)}
    metrics = [{"name": "reconstruction PSNR", "value": 24.06, "floor": 21.0}]
    for level, (dead, perplexity, place) in levels.items():
        metrics += [
            {"name": f"dead codes, {level} codebook", "value": dead, "floor": 511.0},
            {"name": f"perplexity, {level} codebook", "value": perplexity, "floor": 1.0},
            {"name": f"perplexity at one position, {level} codebook", "value": place, "floor": 1.0},
        ]
    path = run.result(home)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metrics": metrics}))
    lines = [
        {"event": "train", "step": step, "place_perplexity_top": top, "place_perplexity_bottom": top + 1}
        for step, top in ((50, 1.0), (100, 1.1), (110, 5.5), (300, 4.125), (2000, 6.0))
    ]
    lines.insert(3, {"event": "valid", "step": 200, "place_perplexity_top": 1.0})
    log = home / "runs" / run.name / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_row_says_what_the_run_measured(tmp_path: Path) -> None:
    _, long = plan([PHANTOM], 2000, 1, 1000)
    assert row(long[0], tmp_path) is None
    finished(long[0], tmp_path)
    # 512 codes less the dead ones; the lowest after step 100, of training steps alone
    assert row(long[0], tmp_path) == [
        "phantom", "full", "0", "24.1 (21.0)", "112 / 500", "210 / 350", "30.2 / 6.0", "4.12 / 5.12",
    ]  # fmt: skip
    lines = table(long, tmp_path).splitlines()
    assert len(lines) == 3
    assert {line.count("|") for line in lines} == {9}


def test_a_finished_run_is_not_repeated_and_an_unfinished_one_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(codes, "mu", lambda command, *_: called.append(command))
    _, long = plan([PHANTOM, PAIRS], 2000, 1, 1000)
    finished(long[0], tmp_path)
    for run in long[:2]:
        codes.train(run, tmp_path)
    assert called == [long[1].command]
    assert "--fresh" not in called[0]
