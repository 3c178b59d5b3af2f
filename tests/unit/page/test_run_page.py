"""The page of a run: curves that the caller names, in their order; results, facts and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medunifier_cli.objectives import pretraining
from medunifier_cli.objectives.objective import EncodedBatch, LossAndMonitors, Objective
from medunifier_cli.objectives.pretraining import curves_of
from medunifier_cli.page.run_page import write_run_page
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import ObjectivesConfig, PretrainRecipe
from medunifier_cli.run.record import Run
from tests.run.small_run import Gallery

ROWS = [["task", "data", "metric", "baseline", "r"], ["retrieval", "d/<test>", "map@1", "0.2", "0.5"]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "r")


def log(run: Run, *lines: dict[str, object]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "train", "st')


def train(step: int, **values: float | None) -> dict[str, object]:
    return {"event": "train", "step": step, **values}


def test_the_caller_names_the_curves_and_their_order(run: Run) -> None:
    log(
        run,
        train(1, a=3.0, b=1.0, other=9.0),
        train(2, a=2.0, b=None),
        {"event": "valid", "step": 2, "a": 4.0},
    )
    page = write_run_page(run, ROWS, {"b": "Loss & more", "missing": "Missing", "a": "A"})
    figures = Gallery(page).figures
    assert len(figures) == 2
    assert "Loss & more: train from 1 to 1" in figures[0]
    assert "A: train from 3 to 2; valid from 4 to 4" in figures[1]
    assert "<h2>Training</h2>" in page.read_text()
    assert "<h2>Training</h2>" not in write_run_page(run, ROWS, {"missing": "Missing"}).read_text()


def test_a_fifth_objective_gets_its_curve(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fifth(Objective):
        name = "fifth"
        title = "Fifth loss"
        monitors = {"fifth_accuracy": "Accuracy of the fifth"}  # noqa: RUF012

        def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
            raise NotImplementedError

    weights = {"itc": 1.0, "fifth": 0.5}
    monkeypatch.setattr(pretraining, "OBJECTIVES", [*pretraining.OBJECTIVES, Fifth()])
    monkeypatch.setattr(ObjectivesConfig, "weights", lambda _: weights)
    curves = curves_of(PretrainRecipe())
    assert list(curves) == [
        "total", "itc", "fifth", "itc_accuracy", "temperature", "fifth_accuracy", "lr",
    ]  # fmt: skip
    log(run, train(1, itc=1.0, fifth=2.0), train(2, itc=1.0, fifth=1.5))
    assert any(
        "Fifth loss: train from 2 to 1.5" in text
        for text in Gallery(write_run_page(run, ROWS, curves)).figures
    )


def test_the_papers_recipe_plots_what_it_always_did() -> None:
    assert set(curves_of(load_recipe("full"))) == {
        "total", "itc", "itm", "itg", "tig", "itc_accuracy", "itm_accuracy", "itg_accuracy",
        "perplexity_top", "perplexity_bottom", "place_perplexity_top", "place_perplexity_bottom",
        "temperature", "lr",
    }  # fmt: skip
    assert "itg" not in curves_of(load_recipe("itc-itm"))


def test_results_facts_and_pictures(run: Run) -> None:
    run.samples.mkdir(parents=True)
    run.results.mkdir()
    for name in ("reconstructions-step-000002.png", "reconstructions-step-000010.png", "other.png"):
        (run.samples / name).write_bytes(b"")
    (run.results / "zeroshot.confusion.png").write_bytes(b"")
    start = {"command": ["mu", "pretrain", "<x>"], "git_commit": "abc", "versions": {"torch": "2"}}
    run.provenance.write_text(json.dumps({"starts": [start, start | {"git_changed": True}]}))
    page = write_run_page(run, ROWS, {})
    text = page.read_text()
    assert page == run.folder / "page" / "index.html"
    assert "d/&lt;test&gt;" in text
    assert "mu pretrain &lt;x&gt;" in text
    assert "<dd>2 times</dd>" in text
    assert "<dd>abc with changes</dd>" in text
    images = [str(attrs["src"]) for tag, attrs in Gallery(page).tags if tag == "img"]
    assert images == ["../samples/reconstructions-step-000010.png", "../results/zeroshot.confusion.png"]
    assert "<h2>Results</h2>" not in write_run_page(run, ROWS[:1], {}).read_text()
