"""One table of several runs: a row per metric, a column per run, derived runs in the column of their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.tables.beside_paper import Section, read_evidence
from medunifier_cli.evaluate.tables.headlines import headlines
from medunifier_cli.evaluate.tables.tables import render_rows, render_sections, rows_of
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneModelConfig, FinetuneRecipe
from medunifier_cli.run.record import Run


def metric(name: str, value: float | None, **more: Any) -> dict[str, Any]:
    entry = {"name": name, "value": value, "floor": None, "unit": "", "note": "", "low": None, "high": None}
    return entry | more


def write(folder: Path, task: str, *metrics: dict[str, Any]) -> None:
    (folder / "results").mkdir(parents=True, exist_ok=True)
    content = {"task": task, "dataset": "d", "split": "test", "metrics": list(metrics)}
    (folder / "results" / f"{task}-d-test.json").write_text(json.dumps(content))


@pytest.fixture
def runs(own_roots: Path) -> tuple[Run, Run]:
    """Two pre-training runs, and one fine-tuned from the first."""
    root = own_roots / "runs"
    one, two, tuned = root / "one", root / "two", root / "tuned"
    write(
        one, "retrieval", metric("map@1", 0.5, floor=0.2, low=0.4, high=0.6), metric("psnr", 20.0, unit="dB")
    )
    write(two, "retrieval", metric("map@1", None, floor=0.2), metric("other", 1.0))
    write(tuned, "finetune", metric("auroc", 0.75))
    for folder in (one, two):
        (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("full")))
    recipe = FinetuneRecipe(model=FinetuneModelConfig(pretrained="one"))
    (tuned / "recipe.yaml").write_text(dump_recipe(recipe))
    return Run(one), Run(two)


def test_a_row_per_metric_and_a_column_per_run(runs: tuple[Run, Run]) -> None:
    assert rows_of(runs) == [
        ["task", "data", "metric", "baseline", "one", "two"],
        ["retrieval", "d/test", "map@1", "0.200", "0.500 (0.400-0.600)", "-"],
        ["retrieval", "d/test", "psnr (dB)", "", "20.000", ""],
        ["finetune (tuned)", "d/test", "auroc", "", "0.750", ""],
        ["retrieval", "d/test", "other", "", "", "1.000"],
    ]


def test_intervals_get_columns_of_their_own(runs: tuple[Run, Run]) -> None:
    header, first, *_ = rows_of(runs, intervals=True)
    assert header[4:] == ["one", "one low", "one high", "two", "two low", "two high"]
    assert first[3:] == [0.2, 0.5, 0.4, 0.6, None, None, None]


def test_as_text_a_heading_for_each_task_keeps_lines_short(runs: tuple[Run, Run]) -> None:
    lines = render_rows(runs[:1], "text").splitlines()
    assert [line.split("  ")[0] or line.strip().split("  ")[0] for line in lines] == [
        "metric", "retrieval, d/test", "map@1", "psnr (dB)", "finetune (tuned), d/test", "auroc",
    ]  # fmt: skip
    rows = json.loads(render_rows(runs, "json"))
    assert rows[0] == {
        "task": "retrieval", "data": "d/test", "metric": "map@1", "baseline": 0.2, "one": 0.5, "one low": 0.4,
        "one high": 0.6, "two": None, "two low": None, "two high": None,
    }  # fmt: skip


def test_a_run_without_results_names_the_verbs_that_write_them(own_roots: Path) -> None:
    folder = own_roots / "runs" / "empty"
    folder.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"empty: no results yet; run `mu retrieve`"):
        rows_of([Run(folder)])


def test_the_papers_tables_in_each_form() -> None:
    sections = [
        Section(f"Table {i}: title", [["method", "measure", "run"], ["m", "a", "1.0"]], 1) for i in (1, 2)
    ]
    assert render_sections(sections, "text").startswith("Table 1: title\n\nmethod  measure  run\n")
    assert "\n\n### Table 2: title\n\n| method | measure | run |\n" in render_sections(sections, "markdown")
    assert render_sections(sections, "csv").splitlines() == [
        "table,method,measure,run", "Table 1,m,a,1.0", "Table 2,m,a,1.0",
    ]  # fmt: skip
    assert json.loads(render_sections(sections, "json"))[1] == {
        "table": "Table 2", "method": "m", "measure": "a", "run": 1.0,
    }  # fmt: skip


def test_results_of_other_weights_are_named_and_fill_no_cell(runs: tuple[Run, Run]) -> None:
    one, _ = runs
    tuned = one.folder.parent / "tuned"
    path = tuned / "results" / "finetune-d-test.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pretrained": {"hash": "a" * 16}}))
    step = one.checkpoints / "step-00000004"
    step.mkdir(parents=True)
    for name, task, kept in (("a", "finetune (tuned)", 2), ("b", "finetune (tuned, of other weights)", 1)):
        (step / "DONE").write_text(name * 64)
        assert rows_of([one])[-1][0] == task
        evidence = read_evidence(one)
        assert len(evidence.results) == kept
        assert any("of other weights than those of one" in note for note in evidence.notes) == (kept == 1)


def test_a_baseline_that_differs_is_not_shown_for_all(runs: tuple[Run, Run]) -> None:
    write(runs[1].folder, "retrieval", metric("map@1", 0.4, floor=0.3))
    assert rows_of(runs)[1][:4] == ["retrieval", "d/test", "map@1", "differs"]
    assert rows_of(runs, intervals=True)[1][3] is None


def test_pairs_of_one_split_are_a_headline_beside_classes_of_another(runs: tuple[Run, Run]) -> None:
    one, _ = runs
    write(one.folder, "retrieval-pairs", metric("recall@1", 0.1))
    assert {headline.task for headline in headlines(one)} == {"retrieval", "finetune (tuned)"}
    path = one.results / "retrieval-pairs-d-test.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "split": "valid"}))
    assert "retrieval-pairs" in {headline.task for headline in headlines(one)}
