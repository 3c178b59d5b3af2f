"""The paper's tables in `mu score`: numbers as the paper prints them, runs in the rows of their recipes."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from medunifier_cli.cli import mu
from medunifier_cli.evaluate.render import render
from medunifier_cli.evaluate.tables.beside_paper import Evidence, sections, unmatched_runs
from medunifier_cli.evaluate.tables.paper_values import TABLES
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneModelConfig, FinetuneRecipe
from tests.folders import SHARED
from tests.miniatures.results import result, write_run

PAPER = SHARED / "paper"
SPELLED = re.compile(r"</?[bu]>|<u>")


def printed_rows() -> list[list[str]]:
    """Every line of the paper's text that is a table row, marks of bold and underline removed."""
    (path,) = PAPER.glob("*.txt")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[SPELLED.sub("", cell).strip() for cell in line.split("\t")] for line in lines if "\t" in line]


@pytest.mark.skipif(not PAPER.is_dir(), reason="needs the paper's text, ../shared/paper")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.number)
def test_every_number_is_the_papers(table: object) -> None:
    rows = printed_rows()
    numbers = [[cell for cell in row if re.fullmatch(r"\d+\.\d|-", cell)] for row in rows]
    for row in table.rows:  # type: ignore[attr-defined]
        wanted = ["-" if value is None else f"{value:.1f}" for value in row.values]
        if table.number == "5":  # type: ignore[attr-defined]
            assert all([value] in numbers for value in wanted if value != "-"), row.name
            continue
        assert wanted in numbers, row.name
        name = row.name.split("(")[0].strip().removeprefix("MedUnifier")
        if not name.startswith("ID"):
            assert any(name in said[0] for said, found in zip(rows, numbers, strict=True) if found == wanted)


@pytest.fixture
def runs(own_roots: Path) -> Path:
    """The paper's model, one ablation, a fine-tuned run and a prior's synthesis, as runs leave them."""
    root = own_roots / "runs"
    ways = {
        "image to text, map@1": 0.6123,
        "image to text, standard_map@1": 0.9,
        "text to image, map@10": 0.5,
    }
    write_run(
        root, "whole", dump_recipe(load_recipe("full")),
        [
            result("retrieval mimic-cxr 5x200", ways),
            result("retrieval-rerank10 mimic-cxr 5x200", {"image to text, map@1": 0.99}),
            result("zeroshot chexpert-5x200 5x200", {"zero-shot accuracy": 0.4321, "zero-shot auroc": 0.8}),
            result("zeroshot-mean rsna zeroshot", {"zero-shot accuracy": 0.97}, ensemble="mean"),
            result("report mimic-cxr test", {"BLEU-4": 0.1234, "BLEU-4, each sentence a reference": 0.5}),
        ],
    )  # fmt: skip
    pair = [result("retrieval mimic-cxr 5x200", {"image to text, map@1": 0.5555})]
    write_run(root, "pair", dump_recipe(load_recipe("itc-itm")), pair)
    tuned = FinetuneRecipe(model=FinetuneModelConfig(pretrained="whole"))
    for fraction, value in ((0.01, 0.801), (1.0, 0.902)):
        scores = [result("finetune rsna test", {"fine-tuned auroc": value}, fraction=fraction)]
        write_run(root, f"tuned-{fraction:g}", dump_recipe(tuned), scores)
    probe = [result("finetune rsna test", {"fine-tuned auroc": 0.7}, fraction=0.1, frozen=True)]
    write_run(root, "probe", dump_recipe(tuned), probe)
    return root


@pytest.fixture
def score() -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(mu, ["score", *words], catch_exceptions=False)


def cells(done: Result) -> dict[tuple[str, str, str], dict[str, str]]:
    """(table, method, measure) -> column -> text; only rows where a run has something."""
    rows = csv.DictReader(io.StringIO(done.stdout))
    return {(row.pop("table"), row.pop("method"), row.pop("measure")): row for row in rows}


def test_runs_fill_the_rows_of_their_objectives(runs: Path, score: Callable[..., Result]) -> None:
    done = score("whole", "pair", "--tables", "--format", "csv")
    assert done.exit_code == 0, done.stderr
    found = cells(done)
    filled = {
        (*place, run): row[run] for place, row in found.items() for run in ("whole", "pair") if row[run]
    }
    assert filled == {
        ("Table 1", "MedUnifier (w TIG)", "RSNA AUC, 1%", "whole"): "80.1",
        ("Table 1", "MedUnifier (w TIG)", "RSNA AUC, 100%", "whole"): "90.2",
        ("Table 2", "MedUnifier (w TIG)", "image-text mAP@1", "whole"): "61.2",
        ("Table 2", "MedUnifier (w TIG)", "text-image mAP@10", "whole"): "50.0",
        ("Table 3", "MedUnifier (w TIG)", "CheXpert 5x200 ACC", "whole"): "43.2",
        ("Table 4", "MedUnifier (w TIG)", "BLEU-4", "whole"): "12.3",
        ("Table 6", "ID 5: ITC ITM ITG TIG", "image-text mAP@1", "whole"): "61.2",
        ("Table 6", "ID 2: ITC ITM", "image-text mAP@1", "pair"): "55.5",
        ("Table A1", "ID 5: ITC ITM ITG TIG", "RSNA AUC, 100%", "whole"): "90.2",
    }
    assert found["Table 6", "ID 2: ITC ITM", "image-text mAP@1"]["paper"] == "55.2"
    assert found["Table 2", "MedUnifier (w TIG)", "text-image mAP@5"]["best other"] == "71.9"


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        ("itc", "ID 1: ITC"),
        ("itc-itm-itg", "ID 3: ITC ITM ITG"),
        ("itc-itm-tig", "ID 4: ITC ITM TIG"),
        ("tig-0.8", "ID 6: ITC ITM ITG 0.8 TIG"),
        ("tig-1.2", "ID 7: ITC ITM ITG 1.2 TIG"),
    ],
)
def test_each_ablation_recipe_has_its_row(
    runs: Path, score: Callable[..., Result], recipe: str, row: str
) -> None:
    accuracy = [result("zeroshot mimic-cxr 5x200", {"zero-shot accuracy": 0.3})]
    write_run(runs, "it", dump_recipe(load_recipe(recipe)), accuracy)
    found = cells(score("it", "--tables", "--format", "csv"))
    places = {method for (table, method, _), values in found.items() if table == "Table A1" and values["it"]}
    assert places == {row}


def test_what_is_printed_by_default(runs: Path, score: Callable[..., Result]) -> None:
    shown = score("whole")
    assert shown.stdout.startswith("Table 1: ")
    assert "GLoRIA" not in shown.stdout
    assert "GLoRIA" in score("whole", "--baselines").stdout
    assert "### Table A1: " in score("whole", "--format", "markdown").stdout
    assert score("whole", "--rows").stdout.startswith("metric ")
    assert score("whole", "--all").stdout == score("whole", "--rows").stdout
    demo = [result("retrieval phantom test", {"image to text, map@1": 0.7})]
    write_run(runs, "toy", dump_recipe(load_recipe("itc", ["data.dataset=phantom"])), demo)
    toy = score("toy")
    header, line, page = toy.stdout.splitlines()
    assert header.split() == ["task", "phantom", "metric", "value", "95", "%", "interval", "baseline"]
    assert line.split() == ["retrieval", "test", "image", "to", "text,", "map@1", "0.700"]
    assert Path(page).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "all 1 numbers: `mu score toy --all`" in toy.stderr
    empty = score("toy", "--tables")
    assert empty.stdout.startswith("Table 1: ")


def test_rows_of_a_run_hold_those_of_what_was_made_from_it(runs: Path, score: Callable[..., Result]) -> None:
    rows = list(csv.DictReader(io.StringIO(score("whole", "--rows", "--format", "csv").stdout)))
    found = {(row["task"], row["metric"]): row["whole"] for row in rows}
    assert found["finetune (tuned-0.01)", "fine-tuned auroc"] == "0.801"
    assert found["finetune (tuned-1)", "fine-tuned auroc"] == "0.902"
    assert found["retrieval", "image to text, map@1"] == "0.6123"


def test_without_a_name_the_pretraining_run_of_the_newest_results(
    runs: Path, score: Callable[..., Result]
) -> None:
    os.utime(runs / "tuned-1" / "recipe.yaml", (4e9, 4e9))
    done = score("--format", "csv", "--rows")
    assert "whole" in done.stdout.splitlines()[0]
    assert "whole" in done.stderr


def test_what_cannot_be_compared_with_the_paper_is_reported(runs: Path, score: Callable[..., Result]) -> None:
    recipe = dump_recipe(load_recipe("full", ["objectives.itm=0"]))
    write_run(runs, "odd", recipe, [result("retrieval mimic-cxr 5x200", {"image to text, map@1": 0.5})])
    assert (
        "odd: its objectives (ITC 1, ITG 1, TIG 1) match no row of the paper"
        in score("odd", "--tables").stderr
    )
    lone = dump_recipe(FinetuneRecipe(model=FinetuneModelConfig(pretrained="gone")))
    write_run(runs, "lone", lone, [result("finetune rsna test", {"auroc": 0.9})])
    assert "lone was made from is gone" in score("lone", "--tables").stderr
    again = dump_recipe(FinetuneRecipe(model=FinetuneModelConfig(pretrained="whole")))
    newer = write_run(runs, "newer", again, [result("finetune rsna test", {"auroc": 0.95})])
    for path in (newer / "results").iterdir():
        os.utime(path, (4e9, 4e9))
    done = score("whole", "--tables")
    assert "RSNA AUC, 100%: 2 results, the newest counts" in done.stderr
    assert re.search(r"w TIG\) +RSNA AUC, 100% +89.3 +91.7 +95.0", done.stdout)


RESULT = result("retrieval mimic-cxr 5x200", {"image to text, map@1": 0.5})
FOUR = {"itc": 1.0, "itm": 1.0, "itg": 1.0, "tig": 1.0}


@pytest.mark.parametrize(
    ("weights", "filled", "line"),
    [
        (FOUR, ["MedUnifier (w TIG)", "ID 5: ITC ITM ITG TIG"], None),
        (
            FOUR | {"tig": 0.8}, [],
            "it: its objectives (ITC 1, ITM 1, ITG 1, TIG 0.8) match no row of tables 2 and 6",
        ),
        (
            FOUR | {"tig": 0.5}, [],
            "it: its objectives (ITC 1, ITM 1, ITG 1, TIG 0.5) match no row of the paper",
        ),
        (
            FOUR | {"itg": 2.0}, [],
            "it: its objectives (ITC 1, ITM 1, ITG 2, TIG 1) match no row of the paper",
        ),
        (
            FOUR | {"ict": 0.25}, [],
            "it: its objectives (ITC 1, ITM 1, ITG 1, TIG 1, ICT 0.25) match no row of the paper",
        ),
        ({"itc": 1.0, "ict": 2.0}, [], "it: its objectives (ITC 1, ICT 2) match no row of the paper"),
        ({"itm": 1.0}, [], "it: its objectives (ITM 1) match no row of the paper"),
        (None, [], None),
    ],
)  # fmt: skip
def test_a_run_fits_the_rows_of_exactly_its_weights(
    weights: dict[str, float] | None, filled: list[str], line: str | None
) -> None:
    run = Evidence("it", weights, [(Path("a.json"), RESULT)])
    rows = [row for section in sections([run]) for row in section.rows[1:]]
    assert [row[0] for row in rows if row[-1]] == filled
    assert unmatched_runs([run]) == ([line] if line else [])


def test_a_markdown_column_of_one_letter_is_still_a_table() -> None:
    lines = render([["metric", "chance", "A"], ["map@1", "", ""]], "markdown", words=1).splitlines()
    assert lines == ["| metric | chance |   A |", "| ------ | -----: | --: |", "| map@1  |        |     |"]


def test_a_run_pretrained_on_other_data_fits_no_row() -> None:
    run = Evidence("it", FOUR, [(Path("a.json"), RESULT)], trained_on="open-i")
    assert not any(row[-1] for section in sections([run]) for row in section.rows[1:])
    assert unmatched_runs([run]) == ["it: pre-trained on open-i, the paper's rows on mimic-cxr"]


def test_a_run_with_no_cell_at_all_says_why_next_to_its_numbers(
    runs: Path, score: Callable[..., Result]
) -> None:
    against_test = result(
        "synthesis mimic-cxr validation", {"FID, validation": 17.0}, real={"name": "mimic-cxr/test", "n": 9}
    )
    write_run(runs, "near", dump_recipe(load_recipe("full")), [against_test])
    done = score("near")
    assert done.stdout.startswith("task ")
    assert "not in table 5: real images mimic-cxr/test, must be mimic-cxr/train" in done.stderr
    tables = score("near", "--tables")
    assert "not in table 5" in tables.stderr
    assert not re.search(r"FID, validation +17.2 +17.0", tables.stdout)
