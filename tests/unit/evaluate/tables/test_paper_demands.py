"""A cell of the paper's tables is filled by a result that was measured as in the paper, and by no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.evaluate.tables.beside_paper import Evidence, sections
from medunifier_cli.evaluate.tables.paper_values import TABLES
from tests.miniatures.results import AS_PUBLISHED, BEAMS, result

PAPER = {"itc": 1.0, "itm": 1.0, "itg": 1.0, "tig": 1.0}
RETRIEVAL = ("retrieval mimic-cxr 5x200", {"image to text, map@1": 0.5})
ZERO_SHOT = ("zeroshot mimic-cxr 5x200", {"zero-shot accuracy": 0.5})
RSNA = ("zeroshot rsna zeroshot", {"zero-shot accuracy": 0.5})
REPORT = ("report mimic-cxr test", {"BLEU-4": 0.5})
TUNED = ("finetune siim test", {"fine-tuned auroc": 0.5})
VALIDATION, REBUILT, NEW = (
    (f"synthesis mimic-cxr {kind}", {f"FID, {kind}": 0.5})
    for kind in ("validation", "reconstruction", "synthetic")
)
SAMPLED = AS_PUBLISHED["synthesis synthetic"]["fake"]
REAL = AS_PUBLISHED["synthesis"]["real"]


def shown(content: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The tables that this result has a cell in, and the notes."""
    run = Evidence("it", PAPER, [(Path("r.json"), content)])
    tables = [one.title.split(":")[0] for one in sections([run]) if any(row[-1] for row in one.rows[1:])]
    return tables, run.left_out


@pytest.mark.parametrize(
    ("measured", "tables"),
    [
        (RETRIEVAL, ["Table 2", "Table 6"]),
        (ZERO_SHOT, ["Table 3", "Table A1"]),
        (RSNA, ["Table 3"]),
        (REPORT, ["Table 4"]),
        (TUNED, ["Table 1", "Table A1"]),
        (VALIDATION, ["Table 5"]),
        (REBUILT, ["Table 5"]),
        (NEW, ["Table 5"]),
    ],
)
def test_what_was_measured_as_published_fills_its_cell(measured: Any, tables: list[str]) -> None:
    what, metrics = measured
    assert shown(result(what, metrics)) == (tables, [])


@pytest.mark.parametrize(
    ("measured", "facts", "note"),
    [
        (TUNED, {"extra": ["films"]}, "further data sets trained on films, must be none"),
        (RETRIEVAL, {"split": "test"}, "not in tables 2 and 6: split test, must be 5x200"),
        (RETRIEVAL, {"n": 250}, "not in tables 2 and 6: number of samples 250, must be 1,000"),
        (RETRIEVAL, {"task": "retrieval-rerank10"}, "protocol retrieval-rerank10, must be retrieval"),
        (
            RETRIEVAL, {"classes": ["Atelectasis", "Consolidation"]},
            "classes Atelectasis, Consolidation, must be Atelectasis, Cardiomegaly, Pneumonia, Edema",
        ),
        (ZERO_SHOT, {"prompt_set": "mine"}, "not in tables 3 and A1: prompts mine, must be gloria"),
        (ZERO_SHOT, {"prompts_per_class": 5}, "prompts per class 5, must be 15"),
        (RSNA, {"prompts_per_class": 15}, "not in table 3: prompts per class 15, must be 10"),
        (ZERO_SHOT, {"ensemble": "mean"}, "score of a class over its prompts mean, must be max"),
        (REPORT, {"limit": 200}, "not in table 4: number of samples it was limited to 200, must be 0"),
        (REPORT, {"decoding": BEAMS | {"how": "nucleus"}}, "decoding nucleus, must be beam"),
        (REPORT, {"decoding": BEAMS | {"beams": 8}}, "number of beams 8, must be 3"),
        (TUNED, {"head": "linear"}, "not in tables 1 and A1: head linear, must be two-linear"),
        (TUNED, {"frozen": True}, "frozen model yes, must be no"),
        (TUNED, {"train": {"split": "train-0.01"}}, "split trained on train-0.01, must be train"),
        (TUNED, {"balanced": True}, "classes weighted by frequency yes, must be no"),
        (TUNED, {"rates": {"model": 1e-5, "head": 3e-4}}, "learning rate of the model 1e-05, must be 3e-06"),
        (TUNED, {"fraction": 0.05}, "not in table 1: share of the training data 0.05"),
        (
            VALIDATION, {"real": REAL | {"name": "mimic-cxr/test"}},
            "not in table 5: real images mimic-cxr/test, must be mimic-cxr/train",
        ),
        (VALIDATION, {"fake": {"name": "mimic-cxr/5x200"}}, "judged images mimic-cxr/5x200, must be"),
        (VALIDATION, {"real": REAL | {"name": "train"}}, "real images train, must be mimic-cxr/train"),
        (
            REBUILT, {"fake": {"name": "r", "own_model": True, "reconstructs": "mimic-cxr/test"}},
            "reconstructed images mimic-cxr/test, must be mimic-cxr/train",
        ),
        (
            NEW, {"fake": {"name": "r", "own_model": False, "prompted": True}},
            "images made by this model no, must be yes; images sampled for prompts yes, must be no",
        ),
        (NEW, {"fake": SAMPLED | {"prior": "masked"}}, "kind of prior masked, must be pixelsnail"),
    ],
)  # fmt: skip
def test_anything_else_leaves_the_cell_empty_and_a_note_says_why(
    measured: Any, facts: dict[str, Any], note: str
) -> None:
    what, metrics = measured
    tables, notes = shown(result(what, metrics, **facts))
    assert tables == []
    assert note in " | ".join(notes)
    assert all(line.startswith("r.json: not in table") for line in notes)


@pytest.mark.parametrize(
    ("measured", "fact", "words"),
    [
        (RETRIEVAL, "classes", "classes"),
        (ZERO_SHOT, "prompt_set", "prompts"),
        (REPORT, "limit", "number of samples it was limited to"),
        (TUNED, "head", "head"),
        (VALIDATION, "real", "real images"),
    ],
)
def test_an_old_result_without_a_fact_fills_no_cell(measured: Any, fact: str, words: str) -> None:
    what, metrics = measured
    tables, notes = shown(result(what, metrics, **{fact: None}))
    assert tables == []
    assert f"{words} not recorded (measure it again; must be " in " ".join(notes)


def test_no_note_where_another_result_fills_the_cell() -> None:
    """Mean ensembles, other prompts and other splits are often measured beside the paper's protocol."""
    what, metrics = ZERO_SHOT
    right, other = result(what, metrics), result(what, metrics, ensemble="mean", task="zeroshot-mean")
    run = Evidence("it", PAPER, [(Path("other.json"), other), (Path("right.json"), right)])
    assert [one.filled for one in sections([run])] == [0, 0, 1, 0, 0, 0, 1]
    assert run.left_out == []


def test_a_fraction_that_one_table_has_is_not_missed_in_another() -> None:
    what, metrics = TUNED
    assert shown(result(what, metrics, fraction=0.1)) == (["Table 1"], [])


def test_every_cell_states_what_it_demands() -> None:
    for table in TABLES:
        for measure in table.measures:
            facts = {demand.fact for demand in measure.demands}
            assert {"real.name"} <= facts or {"task", "split"} <= facts, measure.name
