"""`mu score A.jsonl B.jsonl` and the scores of each report, against pycocoevalcap and numpy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from medunifier_cli.cli import mu
from medunifier_cli.evaluate.reports.comparing import compare_files
from medunifier_cli.evaluate.reports.scoring import groups_of
from medunifier_cli.scores.text import meteor

WORDS = (
    "no", "small", "large", "left", "right", "effusion", "edema", "heart", "lungs", "normal", "clear", "mild",
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)


def reports(n: int, change: float, seed: int) -> list[dict[str, Any]]:
    """Reports of ten words, of which the share `change` is replaced; two of each patient."""
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = truth.choice(WORDS, 10).tolist()
        said = [str(rng.choice(WORDS)) if rng.random() < change else word for word in words]
        rows.append(
            {"key": f"k{i}", "dataset": "phantom", "subject": f"p{i // 2}", "reference": " ".join(words),
             "hypothesis": " ".join(said)}
        )  # fmt: skip
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score(*arguments: object) -> Result:
    return CliRunner().invoke(mu, ["score", *map(str, arguments)])


def bleu(rows: Sequence[dict[str, Any]], picked: np.ndarray) -> list[float]:
    """pycocoevalcap's corpus BLEU of some rows."""
    scorer = BleuScorer(n=4)
    for i in picked:
        scorer += (f"{rows[i]['hypothesis']} .", [f"{rows[i]['reference']} ."])
    return list(scorer.compute_score(option="closest")[0])


def test_differences_are_those_of_other_programs_on_the_same_resamples(tmp_path: Path) -> None:
    a, b = reports(24, 0.5, seed=1), reports(24, 0.35, seed=2)
    draws = 40
    compared = compare_files(write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b), draws, seed=5)
    every = np.arange(24)
    # patients resampled with numpy's generator, image by image
    units = np.random.default_rng(5).integers(0, 12, size=(draws, 12))
    # patients are numbered in the order of their names, p10 before p2
    names = sorted({row["subject"] for row in a})
    picks = [
        np.concatenate([[i for i in every if a[i]["subject"] == names[u]] for u in row]) for row in units
    ]
    bleu_D4 = np.array([np.subtract(bleu(b, pick), bleu(a, pick)) for pick in picks])
    for n in range(4):
        of_a, of_b, delta = compared.metrics[f"BLEU-{n + 1}"]
        assert (of_a, of_b) == pytest.approx((bleu(a, every)[n], bleu(b, every)[n]), abs=1e-9)
        low, high = np.quantile(bleu_D4[:, n], [0.025, 0.975])
        assert (delta.interval.low, delta.interval.high) == pytest.approx((low, high), abs=1e-6)
        worse = min((bleu_D4[:, n] <= 0).sum(), (bleu_D4[:, n] >= 0).sum())
        assert delta.p == pytest.approx(min(1, 2 * (worse + 1) / (draws + 1)))
    rouge = [Rouge().calc_score([f"{row['hypothesis']} ."], [f"{row['reference']} ."]) for row in (*a, *b)]
    gain_N = np.subtract(rouge[24:], rouge[:24])
    low, high = np.quantile([gain_N[pick].mean() for pick in picks], [0.025, 0.975])
    _, _, delta = compared.metrics["ROUGE-L"]
    assert (delta.value, delta.interval.low, delta.interval.high) == pytest.approx((gain_N.mean(), low, high))
    assert "finding micro-F1" in compared.metrics, "the rows name a data set that reads findings"
    assert "24 images that both files have, paired by key" in compared.protocol
    assert "bootstrap over patients, 40 resamples" in compared.protocol


def test_the_better_file_is_found_and_a_file_equals_itself(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", reports(60, 0.6, seed=1))
    b = write(tmp_path / "b.jsonl", reports(60, 0.3, seed=2))
    done = score(a, b, "--format", "csv")
    assert done.exit_code == 0, done.output
    header, *rows = [line.split(",") for line in done.stdout.splitlines()]
    assert header == ["metric", "A", "B", "B - A", "low", "high", "p"]
    for name, of_a, of_b, delta, low, high, p in rows:
        if name.startswith(("BLEU", "ROUGE", "CIDEr")):
            assert float(of_b) - float(of_a) == pytest.approx(float(delta), abs=1e-12)
            assert 0 < float(low) < float(delta) < float(high)
            assert float(p) < 0.01
    assert "paired by key" in done.stderr
    assert "METEOR: left out" in done.stderr
    backwards = compare_files(b, a, 200).metrics["ROUGE-L"][2]
    assert backwards.value == pytest.approx(-compare_files(a, b, 200).metrics["ROUGE-L"][2].value)
    same = compare_files(a, a, 200)
    assert {(delta.value, delta.p) for *_, delta in same.metrics.values()} == {(0, 1)}


def test_files_are_paired_by_key_whatever_their_order(tmp_path: Path) -> None:
    a, b = reports(20, 0.5, seed=1), reports(20, 0.3, seed=2)
    straight = compare_files(write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b), 50)
    extra = {**b[0], "key": "other", "reference": "clear lungs"}
    mixed = compare_files(tmp_path / "a.jsonl", write(tmp_path / "c.jsonl", [extra, *b[::-1]]), 50)
    assert mixed.metrics == straight.metrics
    assert any(
        f"B: 1 of 21 images of {tmp_path / 'c.jsonl'} are not in the other file" in n for n in mixed.notes
    )
    theirs = [{k: v for k, v in row.items() if k not in ("dataset", "subject")} for row in b]
    other = compare_files(tmp_path / "a.jsonl", write(tmp_path / "d.jsonl", theirs), 50)
    assert other.metrics == straight.metrics
    without = [[{k: v for k, v in row.items() if k != "key"} for row in rows] for rows in (a, b)]
    lines = [write(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate(without)]
    by_line = compare_files(*lines, 50)
    assert by_line.metrics == straight.metrics
    assert "paired by line" in by_line.protocol


def test_what_cannot_be_compared_is_named_without_a_word_of_a_report(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", reports(6, 0.5, seed=1))
    b = reports(6, 0.3, seed=2)
    nameless = [{k: v for k, v in row.items() if k != "key"} for row in b]
    for rows, words in (
        ([{**row, "key": "x" + row["key"]} for row in b], "no `key` is in both"),
        ([*b[:2], {**b[2], "reference": "secret heart"}, *b[3:]],
         "different references for 1 of 6 images, first in pair 3"),
        ([*b, b[0]], "1 of 7 lines repeat the `key`"),
        (nameless[:5], "6 and 5 reports without a `key` in each line"),
        ([{**row, "reference": "___"} for row in b], "different references for 6 of 6"),
    ):  # fmt: skip
        done = score(a, write(tmp_path / "b.jsonl", rows))
        assert done.exit_code == 1, done.output
        assert words in done.stderr
        assert "secret" not in done.output
        assert len(done.stderr.strip().splitlines()) == 1
    for arguments in ((a,), (a, a, a), (a, "some-run"), (a, a, "--clinical"), (a, a, "--fake", "valid")):
        done = score(*arguments)
        assert done.exit_code in (1, 2), done.output
        assert "Traceback" not in done.output


def test_scores_of_each_report_are_written_next_to_the_reports(tmp_path: Path) -> None:
    rows = reports(8, 0.5, seed=1)
    rows[3]["reference"] = "___"
    path = write(tmp_path / "mine.jsonl", rows)
    done = score("--reports", path, "--format", "csv")
    assert done.exit_code == 0, done.output
    written = [json.loads(line) for line in (tmp_path / "mine.scores.jsonl").read_text().splitlines()]
    assert f"scores of each report: {tmp_path / 'mine.scores.jsonl'}" in done.stderr
    assert [row["report"] for row in written] == [0, 1, 2, 4, 5, 6, 7], (
        "one has no words to be scored against"
    )
    kept = [rows[row["report"]] for row in written]
    texts = [([f"{row['hypothesis']} ."], [f"{row['reference']} ."]) for row in kept]
    _, cider_N = Cider().compute_score(
        {i: truth for i, (_, truth) in enumerate(texts)}, {i: said for i, (said, _) in enumerate(texts)}
    )
    for i, (row, source) in enumerate(zip(written, kept, strict=True)):
        assert (row["key"], row["subject"], row["dataset"]) == (source["key"], source["subject"], "phantom")
        assert row["rouge_l"] == pytest.approx(Rouge().calc_score(*texts[i]))
        assert row["cider"] == pytest.approx(cider_N[i])
        alone = bleu(kept, np.array([i]))
        assert [row[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx(alone, abs=1e-9)
        assert not {"hypothesis", "reference", "meteor"} & set(row)
    cells = dict(line.split(",")[:2] for line in done.stdout.splitlines() if '"' not in line)
    assert float(cells["ROUGE-L"]) == pytest.approx(np.mean([row["rouge_l"] for row in written]), abs=5e-4)
    before = (tmp_path / "mine.scores.jsonl").read_bytes()
    assert score("--reports", path).exit_code == 0
    assert (tmp_path / "mine.scores.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written_costs_the_file_and_not_the_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "mine.jsonl", reports(4, 0.5, seed=1))
    (tmp_path / "mine.scores.jsonl").mkdir()  # as a folder that may only be read, also for root
    done = score("--reports", path)
    assert done.exit_code == 0, done.output
    assert "BLEU-4" in done.stdout
    assert "scores of each report: not written. " in done.stderr


def test_a_key_and_a_patient_of_zero_are_names(tmp_path: Path) -> None:
    a, b = reports(6, 0.5, seed=1), reports(6, 0.3, seed=2)
    for rows in (a, b):
        for number, row in enumerate(rows):
            row["key"], row["subject"] = number, number // 2
    compared = compare_files(write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b[::-1]), 50)
    assert "paired by key" in compared.protocol
    groups = groups_of(a)
    assert groups is not None
    assert groups.tolist() == ["0", "0", "1", "1", "2", "2"]
