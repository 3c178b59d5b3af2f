"""A recipe's `data.sections` yield to a data set that has none of them; `-o data.sections` does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from medunifier_cli.cli import mu
from medunifier_cli.errors import DataError
from medunifier_cli.options.sections import with_sections_there
from medunifier_cli.recipe.load import load_recipe, load_saved
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.run.record import Run
from medunifier_cli.stages.check.fit_prior import check_condition
from tests.hand_made import png, sample, write_shard

SMALL = Path(__file__).parent / "small_phantom.yaml"
SAID = "mu: mine has no section impression; its own sections are used: report"
NOTES = "clinical_notes"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with one column of texts, prepared as `mine`, and a recipe that asks for impressions."""
    home = tmp_path_factory.mktemp("home")
    lines = ["image,report,split"]
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32)).astype(np.uint8)
        (home / f"{number}.png").write_bytes(png(pixels))
        split = "train" if number < 16 else "valid" if number < 23 else "test"
        lines.append(f"{number}.png,Film {number} shows effusion {number % 5}.,{split}")
    (home / "pairs.csv").write_text("\n".join(lines) + "\n")
    (home / "mine.yaml").write_text(
        f"base: {SMALL}\ndata: {{dataset: mine, sections: [impression]}}\n"
        "train: {steps: 2, valid_every: 0, log_every: 1}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_DATA", str(home / "data"))
        words = ["--raw", str(home / "pairs.csv"), "--name", "mine", "--size", "32", "--workers", "1"]
        result = CliRunner().invoke(mu, ["prepare", "table", *words])
    assert result.exit_code == 0, result.output
    return home


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU_DATA", str(home / "data"))
    monkeypatch.setenv("MU_RUNS", str(home / "runs"))


def call(*words: str) -> Result:
    return CliRunner().invoke(mu, words, catch_exceptions=False)


def test_the_run_states_what_it_was_trained_on(home: Path) -> None:
    recipe = str(home / "mine.yaml")
    for _ in range(2):  # the second is a resumption, of the same recipe
        result = call("pretrain", recipe)
        assert result.exit_code == 0, result.output
        assert result.stderr.splitlines().count(SAID) == 1
    run = Run(home / "runs" / "mine")
    assert load_saved(run.recipe, PretrainRecipe).data.sections == ("report",)
    assert {json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()} >= {2}
    for verb in (("retrieve",), ("report", "--split", "test", "--limit", "2")):
        result = call(*verb, "--run", "mine")
        assert result.exit_code == 0, result.output
        assert SAID not in result.stderr


def test_check_says_the_same_as_training(home: Path) -> None:
    result = call("check", str(home / "mine.yaml"))
    assert result.stderr.splitlines().count(SAID) == 1
    assert "texts: samples with text in report: train 16 of 16, valid 7 of 7, test 7 of 7" in result.stdout


def test_what_a_person_asks_for_does_not_yield(home: Path) -> None:
    asked = (str(home / "mine.yaml"), "-o", "data.sections=[impression]", "--format", "json")
    result = call("check", *asked)
    assert result.exit_code == 1
    assert SAID not in result.stderr
    (problem,) = [row for row in json.loads(result.stdout) if row["check"] == "texts"]
    assert (problem["state"], "sections there: report." in problem["result"]) == ("problem", True)
    result = call("pretrain", *asked[:3], "--name", "asked")
    assert result.exit_code == 1
    assert SAID not in result.stderr
    assert "train, data.sections=impression: there is no text to train a vocabulary on" in result.stderr


@pytest.mark.parametrize(("of_valid", "sections"), [("impression", ("impression",)), (NOTES, (NOTES,))])
def test_one_split_that_has_the_section_is_enough(
    tmp_path: Path, of_valid: str, sections: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The data set names clinical notes alone, and its shards are what they are."""
    for split, name in (("train", NOTES), ("valid", of_valid)):
        rows = [sample(number, sections={name: "Clear lungs."}) for number in range(3)]
        write_shard(tmp_path / f"{split}-000000.tar", rows)
    words = (f"data.shards={tmp_path}", "data.dataset=covid-chestxray", "data.test=")
    recipe = with_sections_there(load_recipe("demo", words), words)
    assert recipe.data.sections == sections
    assert (f"its own sections are used: {NOTES}" in capsys.readouterr().err) == (of_valid == NOTES)
    without = (f"data.shards={tmp_path / 'none'}", *words[1:])
    assert with_sections_there(load_recipe("demo", without), without).data.sections == ("impression",)


def test_check_of_priors_counts_the_texts_that_they_take(tmp_path: Path) -> None:
    """Texts of the model's sections; else prompts of the samples' classes; with neither it is not ready."""
    demo, prior = load_recipe("demo"), load_recipe("prior-demo", (), PriorRecipe)
    for split, said in (("train", {"impression": "Clear."}), ("valid", {"findings": "Clear."})):
        rows = [sample(number, sections=said, labels={}) for number in range(3)]
        write_shard(tmp_path / f"{split}-000000.tar", rows)
    assert check_condition(prior, demo, tmp_path, ("train",)) == "train 3 of 3 with text"
    with pytest.raises(DataError, match=r"'valid' has no text in impression .*there: findings"):
        check_condition(prior, demo, tmp_path, ("train", "valid"))
    shown = [sample(number, sections={}, labels={"Edema": float(number > 0)}) for number in range(3)]
    write_shard(tmp_path / "classes-000000.tar", shown)
    told = check_condition(prior, demo, tmp_path, ("classes",))
    assert told == "classes 2 of 3 with a prompt of their class"
