"""`mu runs`, `mu show` and `mu recipes`: what there is, and that what is shown can be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from medunifier_cli.cli import mu as command
from medunifier_cli.overview.recipes import DEFAULT, explained
from medunifier_cli.recipe.load import dump_recipe, load_any, load_recipe, shipped_recipes
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.run.record import Run
from tests.miniatures.results import result, write_run


def mu(*args: str | Path) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def checkpoint(run: Path, step: int, whole: bool = True) -> None:
    folder = run / "checkpoints" / f"step-{step:08}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 2_000_000)
    if whole:
        (folder / "DONE").write_text("")


@pytest.fixture
def runs(own_roots: Path) -> Path:
    """A complete run, one made from it that was stopped, and one that is damaged."""
    root = own_roots / "runs"
    numbers = [
        result("retrieval phantom test", {"image to text, map@1": 0.5}),
        result("zeroshot phantom test", {"zero-shot accuracy": 0.25}),
        result("pretraining phantom test", {"reconstruction PSNR": 20.0}),
    ]
    base = write_run(root, "base", dump_recipe(load_recipe("demo")), numbers)
    checkpoint(base, load_recipe("demo").train.steps)
    tuned = load_recipe("finetune-demo", ["model.pretrained=base", "train.steps=90"], FinetuneRecipe)
    checkpoint(write_run(root, "tuned", dump_recipe(tuned), []), 30)
    checkpoint(root / "tuned", 60, whole=False)
    write_run(root, "broken", "stage: [", [])
    for number, name in enumerate(("broken", "base", "tuned")):
        for path in (root / name / "recipe.yaml", root / name / "checkpoints"):
            if path.exists():
                os.utime(path, (1e9 + number, 1e9 + number))
    return root


def test_runs_are_listed_the_last_trained_first(runs: Path) -> None:
    rows = json.loads(mu("runs", "--format", "json").stdout)
    columns = ("run", "stage", "data", "state", "step", "headline")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("tuned", "finetune", "phantom", "stopped", "30/90", ""),
        ("base", "pretrain", "phantom", "complete", "620/620", "zero-shot accuracy 0.250"),
        ("broken", "?", "?", "empty", "0", ""),
    ]  # fmt: skip
    assert [row["MB"] for row in rows] == [4, 2, 0]
    lines = mu("runs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "tuned", "base", "broken"]
    assert max(map(len, lines)) <= 100


def test_a_run_that_is_trained_now_is_said_to_be(runs: Path) -> None:
    with Run(runs / "tuned").locked():
        assert json.loads(mu("show", "tuned", "--format", "json").stdout)["state"] == "training"
    assert json.loads(mu("show", "tuned", "--format", "json").stdout)["state"] == "stopped"


def test_no_run_names_the_verb_that_makes_one() -> None:
    done = mu("runs")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "`mu pretrain RECIPE`" in done.stderr
    assert json.loads(mu("runs", "--format", "json").stdout) == []


def test_one_run_is_shown_with_what_was_made_from_it(runs: Path) -> None:
    facts = dict(line.split("  ", 1) for line in mu("show", "base").stdout.splitlines())
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    assert facts["run"] == str(runs / "base")
    assert facts["made from it"] == "tuned"
    assert facts["splits"] == "train, valid, test"
    assert json.loads(mu("show", runs / "tuned", "--format", "json").stdout)["starts from"] == "base"
    assert mu("show", "bas").stderr == f"mu: no run `bas` under {runs}/; did you mean `base`?\n"
    assert "none that can be read" in mu("show", "broken").stdout


def test_every_shipped_recipe_is_listed_with_its_first_sentence() -> None:
    rows = json.loads(mu("recipes", "--format", "json").stdout)
    assert [row["recipe"] for row in rows] == shipped_recipes()
    assert all(row["what it is for"].endswith(".") for row in rows)
    by_name = {row["recipe"]: row for row in rows}
    assert by_name["itc"]["base"] == "full"
    assert by_name["probe-demo"]["stage"] == "finetune"
    assert max(map(len, mu("recipes").stdout.splitlines())) <= 100


@pytest.mark.parametrize("name", ["full", "probe-demo", "prior-demo", "small"])
def test_what_is_shown_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    shown = mu("recipes", name).stdout
    path = tmp_path / f"{name}.yaml"
    path.write_text(shown, encoding="utf-8")
    assert load_any(path) == load_any(name)
    places = {key: place for key, _, place in explained(name)}
    for line in shown.splitlines():
        assert line.rstrip().endswith(":") or line.split("  # ")[-1] in places.values()


def test_each_setting_names_the_file_or_option_that_set_it(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: probe-demo\ntrain:\n  epochs: 3\n", encoding="utf-8")
    rows = {key: (value, place) for key, value, place in explained(mine, ["train.seed=4"])}
    assert rows["train.epochs"] == (3, f"{mine}:3")
    assert rows["train.seed"] == (4, "-o train.seed=4")
    assert rows["model.freeze"][1].endswith("probe-demo.yaml:6")
    assert rows["train.keep"] == (1, DEFAULT)
    table = mu("recipes", mine, "--format", "json").stdout
    assert {row["key"]: row["origin"] for row in json.loads(table)} == {
        key: place for key, (_, place) in {**rows, "train.seed": (0, DEFAULT)}.items()
    }


def test_a_copy_has_the_comments_and_loads(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert mu("recipes", "itc", "--copy", target).exit_code == 0
    assert target.read_text(encoding="utf-8").splitlines()[1].startswith("# Ablation of the paper")
    assert yaml.safe_load(target.read_text(encoding="utf-8"))["base"] == "full"
    again = mu("recipes", "itc", "--copy", target)
    assert again.stderr.endswith("exists already; name another file, or remove it\n")
    assert "ends in .yaml" in mu("recipes", "itc", "--copy", tmp_path / "mine").stderr
    nearby = tmp_path / "below"
    nearby.mkdir()
    (nearby / "own.yaml").write_text("base: other.yaml\n", encoding="utf-8")
    (nearby / "other.yaml").write_text("base: demo\n", encoding="utf-8")
    done = mu("recipes", nearby / "own.yaml", "--copy", tmp_path / "moved.yaml")
    assert done.exit_code == 1
    assert "not copied" in done.stderr
    assert not (tmp_path / "moved.yaml").exists()


def test_a_wrong_recipe_is_told_as_everywhere() -> None:
    done = mu("recipes", "ful")
    assert (done.exit_code, "did you mean `full`?" in done.stderr) == (1, True)
    assert "epohcs is not a recipe key" in mu("recipes", "full", "-o", "train.epohcs=3").stderr
