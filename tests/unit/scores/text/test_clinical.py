"""Clinical scores, from a stand-in that takes and gives what radeval 2.2.1 does."""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from sklearn.metrics import f1_score

from medunifier_cli.evaluate.reports.reporting import save_scores
from medunifier_cli.evaluate.reports.scoring import score_rows
from medunifier_cli.scores.bootstrap import mean_intervals
from medunifier_cli.scores.text import meteor
from medunifier_cli.scores.text.clinical import CHEXBERT, CLINICAL, DIRECTION, POLICY, clinical_scores

OBSERVATIONS = (*(f"observation {i}" for i in range(13)), "No Finding")
FIVE = ("observation 1", "observation 4", "observation 5", "observation 7", "observation 9")
HYPOTHESES = ["a b", "b c d", "secret heart", "h", "", "n"]
REFERENCES = ["a", "b c e", "secret heart", "h j", "f", "m"]
PATIENTS = ["1", "1", "2", "3", "4", "5"]


class F1CheXbert:
    """`radeval.metrics.f1chexbert.F1CheXbert`: observation i is said by the i-th letter of the alphabet."""

    TARGET_NAMES = OBSERVATIONS
    TOP5 = FIVE

    def __init__(
        self, *, refs_filename: str | None = None, hyps_filename: str | None = None, device: str = "cuda",
        batch_size: int = 64,
    ) -> None:  # fmt: skip
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert constants.HF_HUB_OFFLINE
        if device != "cpu":  # its model moves to the device it is told, and there is no GPU in a test
            raise AssertionError("Torch not compiled with CUDA enabled")

    def get_labels(self, reports: list[str], mode: str = "rrg") -> list[list[int]]:
        return [[int(chr(ord("a") + i) in text) for i in range(14)] for text in reports]


class RadEval:
    """`radeval.RadEval`, with `per_sample` as a list for each key."""

    def __init__(
        self, metrics: list[str] | None = None, openai_api_key: str | None = None,
        gemini_api_key: str | None = None, per_sample: bool = False, detailed: bool = False,
        show_progress: bool = True, cache_dir: str | None = None,
    ) -> None:  # fmt: skip
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert sys.modules["RadEval"] is sys.modules["radeval"]
        self.metrics, self.per_sample = metrics or [], per_sample

    def __call__(self, refs: list[str], hyps: list[str]) -> dict[str, float | list[float]]:
        if not (isinstance(hyps, list) and isinstance(refs, list)):
            raise TypeError("hyps and refs must be of type list")
        values = [
            len(set(a) & set(b)) / max(1, len(set(a) | set(b))) for a, b in zip(refs, hyps, strict=True)
        ]
        columns = {
            "radgraph": {f"radgraph_{n}": values for n in ("simple", "partial", "complete")},
            "radcliq": {"radcliq_v1": [1.5 - 3 * value for value in values]},
            "ratescore": {"ratescore": [0.5 if value == 1 else value for value in values]},
        }[self.metrics[0]]
        if self.per_sample:
            return {**columns}
        means = {key: float(np.mean(column)) for key, column in columns.items()}
        return {key: 1 / mean if key == "radcliq_v1" else round(mean, 4) for key, mean in means.items()}


@pytest.fixture
def radeval(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The stand-in in place of the package."""
    package, metrics, chexbert = (
        types.ModuleType(name) for name in ("radeval", "radeval.metrics", "radeval.metrics.f1chexbert")
    )
    package.__spec__ = importlib.machinery.ModuleSpec("radeval", None, is_package=True)
    package.RadEval = RadEval  # type: ignore[attr-defined]
    chexbert.F1CheXbert = F1CheXbert  # type: ignore[attr-defined]
    for module in (package, metrics, chexbert):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "RadEval", package)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return package


@pytest.mark.usefixtures("radeval")
def test_f1_of_chexbert_is_that_of_scikit_learn() -> None:
    found = clinical_scores(HYPOTHESES, REFERENCES, draws=0)
    labels = [np.array(F1CheXbert.get_labels(F1CheXbert, texts)) for texts in (REFERENCES, HYPOTHESES)]  # type: ignore[arg-type]
    for n, columns in ((14, slice(None)), (5, [OBSERVATIONS.index(name) for name in FIVE])):
        for kind in ("micro", "macro"):
            expected = f1_score(labels[0][:, columns], labels[1][:, columns], average=kind, zero_division=0)
            assert found.scores[f"CheXbert {kind}-F1, {n} observations"] == pytest.approx(expected, abs=1e-12)
    assert not found.intervals
    assert 0 < found.scores[CHEXBERT[0]] < 1
    # Reports 0 to 5 differ in 1, 2, 0, 1, 1 and 1 of the letters a to n.
    assert found.per_report["chexbert_agreement_14"].tolist() == pytest.approx(
        [13 / 14, 12 / 14, 1, 13 / 14, 13 / 14, 12 / 14]
    )


@pytest.mark.usefixtures("radeval")
def test_each_score_has_an_interval_over_patients_and_a_value_for_each_report() -> None:
    found = clinical_scores(HYPOTHESES, REFERENCES, PATIENTS)
    assert tuple(found.scores) == tuple(found.intervals) == CLINICAL
    assert all(values.shape == (6,) for values in found.per_report.values())
    assert list(found.per_report) == [
        "chexbert_agreement_14", "chexbert_agreement_5", "radgraph_simple", "radgraph_partial",
        "radgraph_complete", "radcliq_v1", "ratescore",
    ]  # fmt: skip
    graph = found.per_report["radgraph_simple"]
    assert found.scores["RadGraph F1, entities"] == pytest.approx(graph.mean())
    assert found.intervals["RadGraph F1, entities"] == mean_intervals({"": graph}, PATIENTS)[""]
    for name, span in found.intervals.items():
        assert span.low < found.scores[name] < span.high, name
    alone = clinical_scores(HYPOTHESES, REFERENCES)
    assert alone.scores == found.scores
    assert alone.intervals != found.intervals


@pytest.mark.usefixtures("radeval")
def test_intervals_of_chexbert_are_those_of_the_repeated_reports() -> None:
    """As for means: the 95 % of F1 on reports that are drawn again and again, computed by scikit-learn."""
    found = clinical_scores(HYPOTHESES, REFERENCES, draws=60, seed=3)
    truth, said = (np.array(F1CheXbert.get_labels(F1CheXbert, texts)) for texts in (REFERENCES, HYPOTHESES))  # type: ignore[arg-type]
    drawn = np.random.default_rng(3).integers(0, 6, size=(60, 6))
    for kind in ("micro", "macro"):
        values = [f1_score(truth[rows], said[rows], average=kind, zero_division=0) for rows in drawn]
        span = found.intervals[f"CheXbert {kind}-F1, 14 observations"]
        assert (span.low, span.high) == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=1e-12)


@pytest.mark.usefixtures("radeval")
def test_radcliq_is_the_mean_of_its_reports_and_not_radevals_reciprocal() -> None:
    found = clinical_scores(REFERENCES, REFERENCES, draws=0)
    assert found.scores["RadCliQ-v1"] == pytest.approx(-1.5)
    assert RadEval(["radcliq"])(REFERENCES, REFERENCES)["radcliq_v1"] == pytest.approx(-1 / 1.5)
    assert DIRECTION in found.notes


@pytest.mark.usefixtures("radeval")
def test_the_file_of_scores_has_them_for_each_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)  # METEOR is another test's
    rows = [
        {"reference": a, "hypothesis": b, "subject": s}
        for a, b, s in zip([*REFERENCES, "___"], [*HYPOTHESES, "g"], [*PATIENTS, "6"], strict=True)
    ]
    scored = score_rows(rows, None, constant="a b", clinical=True)
    by_name = {metric.name: metric for metric in scored.metrics}
    for name in CLINICAL:
        metric = by_name[name]
        assert None not in (metric.value, metric.low, metric.high, metric.baseline), name
    assert by_name["RadGraph F1, entities"].baseline == pytest.approx(
        np.mean([1 / 3, 2 / 5, 2 / 9, 1 / 5, 0, 0])
    )
    path = save_scores(scored, tmp_path / "reports.jsonl")
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["report"] for row in written] == list(range(6))
    assert [row["radcliq_v1"] for row in written] == clinical_scores(HYPOTHESES, REFERENCES).per_report[
        "radcliq_v1"
    ].tolist()
    assert all(row["chexbert_agreement_14"] > 0.8 for row in written)
    assert "secret" not in path.read_text(encoding="utf-8")


def test_without_the_package_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    found = clinical_scores(HYPOTHESES, REFERENCES)
    assert not found.scores
    assert len(found.notes) == 1
    assert "medunifier[clinical]" in found.notes[0]


def test_absent_weights_and_other_versions_are_a_line_each(
    radeval: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Partly(RadEval):
        def __init__(self, metrics: list[str], **options: bool) -> None:
            super().__init__(metrics, **options)
            if metrics == ["radgraph"]:
                raise OSError("secret heart is not cached")

        def __call__(self, refs: list[str], hyps: list[str]) -> dict[str, float | list[float]]:
            if self.metrics == ["ratescore"]:
                return {"ratescore": 0.5}
            if self.metrics == ["radcliq"]:
                return {"radcliq_v1": [1.0, float("nan"), 1.0, 1.0, 1.0, 1.0]}
            return super().__call__(refs, hyps)

    monkeypatch.setattr(radeval, "RadEval", Partly)
    before = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    found = clinical_scores(HYPOTHESES, REFERENCES)
    assert tuple(found.scores) == CHEXBERT
    assert list(found.per_report) == ["chexbert_agreement_14", "chexbert_agreement_5"]
    assert found.notes[0] == POLICY
    assert "radgraph: left empty (OSError). Its weights may be missing" in found.notes[1]
    assert "radcliq: left empty. This version of radeval gives no `radcliq_v1` of each" in found.notes[2]
    assert "ratescore: left empty. This version of radeval gives no `ratescore` of each" in found.notes[3]
    assert len(found.notes) == 4
    assert not any("secret" in note for note in found.notes)
    assert (os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE) == before


def test_a_package_that_cannot_be_imported_is_a_line_for_each_metric(
    radeval: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("no such module", name="medspacy")

    monkeypatch.setattr(radeval, "RadEval", broken)
    monkeypatch.setattr(sys.modules["radeval.metrics.f1chexbert"], "F1CheXbert", broken)
    found = clinical_scores(HYPOTHESES, REFERENCES)
    assert not found.scores
    assert [note.split(": ")[0] for note in found.notes] == ["f1chexbert", "radgraph", "radcliq", "ratescore"]
    assert all("no `medspacy`" in note for note in found.notes)
