"""The page of a run: curves that the caller names, in their order; results, facts and pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier_cli.objectives import pretraining
from medunifier_cli.objectives.objective import EncodedBatch, LossAndMonitors, Objective
from medunifier_cli.objectives.pretraining import curves_of
from medunifier_cli.page.differences import differences
from medunifier_cli.page.pictures import save_rows
from medunifier_cli.page.plot import plot
from medunifier_cli.page.run_page import Contents, Number, NumberGroup, span, write_run_page
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import ObjectivesConfig, PretrainRecipe
from medunifier_cli.run.record import Run
from tests.run.small_run import Gallery

NUMBER = Number("map@1", "0.500", span(0.5, 0.2), "0.200")
CONTENTS = Contents(groups=[NumberGroup("retrieval, d/<test>", "n = 3", [NUMBER])])


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
    page = write_run_page(run, CONTENTS, {"b": "Loss & more", "missing": "Missing", "a": "A"})
    figures = Gallery(page).figures
    assert len(figures) == 2
    assert "training 1" in figures[0]
    assert "training from 3 to 2" in figures[1]
    assert "validation 4" in figures[1]
    assert 'aria-label="Loss &amp; more: training 1"' in page.read_text()
    assert ">Training</h2>" in page.read_text()
    assert ">Training</h2>" not in write_run_page(run, CONTENTS, {"missing": "Missing"}).read_text()


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
        "Fifth loss" in text and "training from 2 to 1.5" in text
        for text in Gallery(write_run_page(run, CONTENTS, curves)).figures
    )


def test_the_papers_recipe_plots_what_it_always_did() -> None:
    assert set(curves_of(load_recipe("full"))) == {
        "total", "itc", "itm", "itg", "tig", "itc_accuracy", "itm_accuracy", "itg_accuracy",
        "perplexity_top", "perplexity_bottom", "place_perplexity_top", "place_perplexity_bottom",
        "temperature", "lr",
    }  # fmt: skip
    assert "itg" not in curves_of(load_recipe("itc-itm"))


def test_results_facts_and_pictures(run: Run) -> None:
    grey = np.zeros((8, 8))
    for name, levels in (("step-000002", (0.1, 0.2)), ("step-000010", (0.4, 0.6))):
        save_rows([[grey + levels[0]], [grey + levels[1]]], run.samples / f"reconstructions-{name}.png")
    (run.samples / "reconstructions-step-000011.png").write_bytes(b"")  # damaged
    (run.samples / "other.png").write_bytes(b"")
    save_rows([[grey + 0.8]], run.samples / "synthetic.png", ["Small <left> effusion."])
    start = {"command": ["mu", "pretrain", "<x>"], "git_commit": "abc", "versions": {"torch": "2"}}
    run.provenance.write_text(json.dumps({"starts": [start, start | {"git_changed": True}]}))
    page = write_run_page(run, CONTENTS, {})
    text = page.read_text()
    assert page == run.folder / "page" / "index.html"
    assert "d/&lt;test&gt;" in text
    assert "mu pretrain &lt;x&gt;" in text
    assert "<dd>2 times</dd>" in text
    assert "<dd>abc with changes</dd>" in text
    assert "Small &lt;left&gt; effusion." in text
    assert levels_of(page) == [round(0.8 * 255)]  # no reconstructions: the last picture is damaged
    (run.samples / "reconstructions-step-000011.png").unlink()
    page = write_run_page(run, Contents(), {})
    assert levels_of(page) == [round(level * 255) for level in (0.4, 0.6, 0.8)]
    assert "The first ones of the validation at step 10." in page.read_text()
    assert ">All numbers</h2>" not in page.read_text()


def levels_of(page: Path) -> list[int]:
    """The grey level of each picture in a page."""
    sources = [str(attrs["src"]) for tag, attrs in Gallery(page).tags if tag == "img"]
    decoded = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    return [int(np.asarray(Image.open(io.BytesIO(body)))[4, 4]) for body in decoded]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.5, 0.2, 0.4, 0.6), (50, 20, 40, 60)),
        ((30.0, 20.0, None, None), (100, 66.67, None, None)),
        ((-1.0, 1.0, None, None), (0, 100, None, None)),
        ((None, None, None, None), (0, None, None, None)),
        ((float("nan"), 0.5, None, None), (0, 50, None, None)),
    ],
)
def test_a_bar_begins_at_nought_and_ends_at_one_or_at_the_largest_number(
    numbers: tuple[float | None, ...], expected: tuple[float | None, ...]
) -> None:
    bar = span(*numbers)
    assert (bar.value, bar.baseline, bar.low, bar.high) == expected


def test_words_that_differ_are_marked() -> None:
    said, true = differences("Large left effusion.", "Large right effusion, mild edema.")
    assert said == [("Large", False), ("left", True), ("effusion.", False)]
    assert true == [("Large", False), ("right", True), ("effusion,", False), ("mild edema.", True)]
    assert differences("", "a b") == ([], [("a b", True)])


def test_a_squeezed_curve_gets_a_logarithmic_axis_and_ticks() -> None:
    """Loss that falls from 1.7 to 0.001 within a tenth of the steps, and a learning rate."""
    falling = [(step, 1.7 / (1 + step**2)) for step in range(40)]
    drawn = plot("TIG", {"train": falling, "valid": [(3, 0.1), (39, 0.002)]})
    assert "logarithmic axis" in drawn
    assert re.findall(r'text-anchor="end">([\d.e-]+)<', drawn) == ["0.01", "0.1", "1"]
    tops = [float(y) for y in re.findall(r"[\d.]+,([\d.]+)", drawn.split('class="train" points="')[1])[:40]]
    assert tops == sorted(tops)  # lower values are further down
    straight = plot("Learning rate", {"train": [(step, 1e-4 * step) for step in range(10)]})
    assert "logarithmic" not in straight
    assert len(re.findall(r'class="grid"', straight)) >= 3
    with pytest.raises(ValueError, match="nothing to plot"):
        plot("none", {"train": []})
