"""Report scores against pycocoevalcap, on real Open-i reports where they are and on drawn ones always."""

from __future__ import annotations

import os
import shutil
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.reports.scoring import score_rows
from medunifier_cli.scores.text.bleu import bleu_counts
from medunifier_cli.scores.text.meteor import Corpus, MeteorScores, MeteorUnavailableError, meteor
from medunifier_cli.scores.text.report import METRICS, report_scores
from medunifier_cli.scores.text.rouge import common_subsequence, rouge_l
from medunifier_cli.scores.text.words import PROTOCOLS, Protocol, prepare, sentences
from tests.folders import SHARED

OPEN_I = SHARED / "data/open-i/NLMCXR_reports.tgz"
CHOSEN = np.random.default_rng(0).integers(0, 20, 20)
"""A resample of 20 reports."""
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR 1.5 needs Java")


def open_i_reports(count: int) -> list[str]:
    """Findings and impression of the first so many reports that have either."""
    if not OPEN_I.is_file():
        pytest.skip("the Open-i reports are not in ../shared/data/open-i")
    reports = []
    with tarfile.open(OPEN_I) as archive:
        names = [name for name in archive.getnames() if name.endswith(".xml")]
        for name in sorted(names, key=lambda name: int(Path(name).stem)):
            file = archive.extractfile(name)
            assert file is not None
            parts = {e.get("Label"): e.text or "" for e in ElementTree.parse(file).iter("AbstractText")}
            report = f"{parts.get('FINDINGS', '')} {parts.get('IMPRESSION', '')}".strip()
            if sentences(report):
                reports.append(report)
            if len(reports) == count:
                return reports
    raise AssertionError("fewer reports than expected")


def drawn_reports(count: int) -> list[str]:
    """Sentences of a small vocabulary, punctuation and numbers included."""
    rng = np.random.default_rng(0)
    vocabulary = [
        "heart",
        "size",
        "is",
        "normal",
        "no",
        "effusion",
        "T-spine",
        "1.8",
        "cm",
        "left/right",
        "The",
    ]
    return [
        " ".join(
            " ".join(rng.choice(vocabulary, rng.integers(1, 12))) + rng.choice([".", "!", " . "])
            for _ in range(rng.integers(1, 6))
        )
        for _ in range(count)
    ]


def written_by_a_model(references: list[str]) -> list[str]:
    """Like the reports but wrong: words lost, sentences of others; some the same, some empty."""
    rng = np.random.default_rng(1)
    out = []
    for i, report in enumerate(references):
        words = [word for word in report.split() if rng.random() < 0.8]
        other = references[(i + 1) % len(references)].split(".")
        text = " ".join(words) + " . " + other[rng.integers(len(other))]
        out.append(report if i % 17 == 0 else "" if i % 41 == 1 else "normal" if i % 43 == 2 else text)
    return out


def coco(
    said: list[list[str]], truth: list[list[list[str]]]
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Corpus and per-report scores of pycocoevalcap."""
    gts = {i: [" ".join(words) for words in against] for i, against in enumerate(truth)}
    res = {i: [" ".join(words)] for i, words in enumerate(said)}
    corpus, each = Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(corpus, 1)}
    per_report = {f"bleu_{n}": np.array(values) for n, values in enumerate(each, 1)}
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider())):
        score, values = scorer.compute_score(gts, res)
        scores[name], per_report[name] = float(score), np.array(values)
    return scores, per_report


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("reports", [open_i_reports, drawn_reports])
def test_scores_equal_pycocoevalcap(reports: Callable[[int], list[str]], protocol: Protocol) -> None:
    references = reports(500)
    hypotheses = written_by_a_model(references)
    got = report_scores(hypotheses, references, protocol, draws=0)
    scores, per_report = coco(*prepare(hypotheses, references, protocol))
    assert 0.1 < scores["bleu_4"] < 0.9
    assert scores["cider"] > 0.05
    for name, value in scores.items():
        assert got.scores[name] == pytest.approx(value, abs=1e-6), name
        np.testing.assert_allclose(got.per_report[name], per_report[name], atol=1e-6, err_msg=name)
    assert any("empty and score 0" in note for note in got.notes)


@pytest.fixture(scope="module")
def of_meteor() -> dict[str, MeteorScores]:
    """Several corpora by one start of the program, which takes it seconds: the first again as the last."""
    if shutil.which("java") is None:
        pytest.skip("METEOR 1.5 needs Java")
    said = ["the heart is normal . lungs clear .", "no effusion or pneumothorax ."]
    truth = [["the heart is normal . lungs clear ."], ["no pneumothorax .", "heart big ."]]
    by_hand = Corpus([text.split() for text in said], [[text.split() for text in t] for t in truth])
    perfect = [["lungs", "clear", "."]]
    words, references = prepare(written_by_a_model(drawn_reports(20)), drawn_reports(20))
    counts_DN = np.bincount(CHOSEN, minlength=20)[None].astype(np.float64)
    corpora = {
        "by hand": by_hand,
        "perfect": Corpus(perfect, [perfect]),
        "resampled": Corpus(words, references, counts_DN),
        "repeated": Corpus([words[i] for i in CHOSEN], [references[i] for i in CHOSEN]),
        "by hand again": by_hand,
    }
    return dict(zip(corpora, meteor(list(corpora.values())), strict=True))


def test_meteor_gives_what_the_authors_program_printed(of_meteor: dict[str, MeteorScores]) -> None:
    """Values of meteor-1.5.jar (`-l en -norm`) on these words alone, recorded by hand; corpora do not mix."""
    for name in ("by hand", "by hand again"):
        assert of_meteor[name].corpus == pytest.approx(0.557416961095294, abs=1e-9)
        np.testing.assert_allclose(of_meteor[name].per_report, [1.0, 0.39887076170621727], atol=1e-9)
    assert of_meteor["perfect"].corpus == pytest.approx(1.0)


def test_meteor_of_a_resample_is_that_of_the_repeated_reports(of_meteor: dict[str, MeteorScores]) -> None:
    resample, repeated = of_meteor["resampled"], of_meteor["repeated"]
    assert resample.resampled == pytest.approx([repeated.corpus], abs=1e-12)
    assert resample.corpus != pytest.approx(repeated.corpus, abs=1e-4)


@needs_java
@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_meteor_equals_pycocoevalcap(protocol: Protocol) -> None:
    references = open_i_reports(500)
    hypotheses = written_by_a_model(references)
    said, truth = prepare(hypotheses, references, protocol)
    program = Meteor()
    score, each = program.compute_score(
        {i: [" ".join(words) for words in against] for i, against in enumerate(truth)},
        {i: [" ".join(words)] for i, words in enumerate(said)},
    )
    for pipe in (program.meteor_p.stdout, program.meteor_p.stderr):
        pipe.close()
    (got,) = meteor([Corpus(said, truth)])
    assert 0.1 < score < 1
    assert got.corpus == pytest.approx(score, abs=1e-6)
    np.testing.assert_allclose(got.per_report, each, atol=1e-6)
    assert all(value == 0 for value, words in zip(each, said, strict=True) if not words)


def test_without_java_meteor_stays_empty_and_the_rest_is_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scored = score_rows([{"reference": "No pleural effusion.", "hypothesis": "No effusion."}], None)
    values = {metric.name: metric.value for metric in scored.metrics}
    assert values["METEOR"] is None
    assert all(value is not None for name, value in values.items() if not name.startswith("METEOR"))
    assert any(note.startswith("METEOR: left empty") and "Java" in note for note in scored.notes)


def test_a_java_that_does_not_run_is_said_and_does_not_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(MeteorUnavailableError, match="stopped"):
        meteor([Corpus([["no", "effusion"]], [[["no", "effusion"]]])])


def test_what_a_tokenizer_does_to_blanks_and_capitals_changes_nothing() -> None:
    report = "1. The T-spine shows a 1.8 cm nodule, see XXXX.\n2. No pneumothorax/effusion. Café!"
    decoded = "1. the t - spine shows a 1. 8 cm nodule, see xxxx. 2. no pneumothorax / effusion. cafe!"
    expected = [
        ["the", "t", "spine", "shows", "a", "1.8", "cm", "nodule", "see", "xxxx"],
        ["no", "pneumothorax", "effusion"],
        ["cafe"],
    ]
    assert sentences(report) == sentences(decoded) == expected
    assert sentences("... 3.  ___ .") == []


def test_protocols_make_one_reference_or_one_a_sentence() -> None:
    said, single = prepare(["No effusion."], ["No effusion. Heart normal."], "single")
    assert (said, single) == ([["no", "effusion", "."]], [[["no", "effusion", ".", "heart", "normal", "."]]])
    said, many = prepare(["No effusion."], ["No effusion. Heart normal."], "sentences")
    assert (said, many) == ([["no", "effusion"]], [[["no", "effusion"], ["heart", "normal"]]])
    # BLEU-1 of the worked example: 3 of 3 words, brevity exp(1 - 6/3); against the sentence alone it is 1
    assert bleu_counts(*prepare(["No effusion."], ["No effusion. Heart normal."])).corpus()[
        0
    ] == pytest.approx(np.exp(-1))
    assert bleu_counts(said, many).corpus()[0] == pytest.approx(1)


def test_common_subsequence_equals_the_table() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        a, b = (list(rng.choice(list("abcd"), rng.integers(0, 70))) for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, x in enumerate(a, 1):
            for j, y in enumerate(b, 1):
                table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
        assert common_subsequence(a, b) == table[-1, -1]


def test_intervals_are_those_of_the_corpus_scores() -> None:
    references = drawn_reports(60)
    hypotheses = written_by_a_model(references)
    got = report_scores(hypotheses, references, draws=200, seed=3)
    said, truth = prepare(hypotheses, references)
    assert set(got.intervals) == set(METRICS)
    for name, interval in got.intervals.items():
        assert interval.low < got.scores[name] < interval.high
        assert interval.draws == 200
    # BLEU of a resample, the long way: score the repeated reports again
    index = np.random.default_rng(0).integers(0, 60, 60)
    counts = np.bincount(index, minlength=60)
    again = coco([said[i] for i in index], [truth[i] for i in index])[0]["bleu_4"]
    assert bleu_counts(said, truth).corpus(counts[None])[0, 3] == pytest.approx(again, abs=1e-9)


def test_bad_input_is_said_in_one_line_without_the_report() -> None:
    cases = [
        (lambda: report_scores([], []), "no report to score"),
        (lambda: report_scores(["a"], ["a", "b"]), "1 hypotheses and 2 references"),
        (lambda: report_scores(["a", "b"], ["Heart normal.", "1. ___"]), "first in row 1"),
        (lambda: prepare(["a"], ["b"], "double"), "single and sentences"),
        (lambda: rouge_l([["a"]], [[]]), "references"),
    ]
    for call, words in cases:
        with pytest.raises(DataError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
        assert "Heart" not in str(error.value)
