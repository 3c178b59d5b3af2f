"""experiments/augmentation.py: its table and the interval of the difference, from results made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from experiments.augmentation import Experiment, page, pooled_difference

TRUTH = [True, True, True, False, False, False]
REAL = [0.9, 0.4, 0.6, 0.5, 0.1, 0.7]
BOTH = [0.9, 0.8, 0.6, 0.5, 0.1, 0.7]
PATIENTS = {f"k{i}": f"p{i // 2}" for i in range(6)}


def write(home: Path, arm: str, seed: int, scores: list[float]) -> None:
    folder = home / f"runs/{arm}-{seed}/results"
    folder.mkdir(parents=True)
    value = roc_auc_score(TRUTH, scores)
    metric = {"name": "fine-tuned auroc", "value": value, "low": value - 0.1, "high": value + 0.1}
    more: dict[str, Any] = {"extra_samples": {"synthetic": {"n": 8}}} if arm == "both" else {}
    result = {"n": 6, "train": {"n": 4}, "metrics": [metric], **more}
    (folder / "finetune-pneumonia-test.json").write_text(json.dumps(result))
    lines = [
        json.dumps(
            {"key": f"k{i}", "truth": ("no pneumonia", "pneumonia")[truth], "scores": {"pneumonia": score}}
        )
        for i, (truth, score) in enumerate(zip(TRUTH, scores, strict=True))
    ]
    (folder / "finetune-pneumonia-test.samples.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for seed in range(2):
        write(tmp_path, "real", seed, REAL)
        write(tmp_path, "both", seed, BOTH if seed else REAL)
    write(tmp_path, "real", 2, REAL)  # a seed of which one arm is missing
    (tmp_path / "reconstructed").mkdir()
    (tmp_path / "reconstructed/samples.jsonl").write_text('{"psnr": 20.0}\n{"psnr": 21.0}\n')
    return tmp_path


def test_difference_is_that_of_scikit_learn_and_lies_in_its_interval(home: Path) -> None:
    value, spread = pooled_difference(home, [0, 1], PATIENTS)
    gain = roc_auc_score(TRUTH, BOTH) - roc_auc_score(TRUTH, REAL)
    assert value == pytest.approx(gain / 2)
    assert spread.low <= value <= spread.high
    assert spread.low < spread.high


def test_table_has_the_complete_seeds_and_says_how_many_there_are(home: Path) -> None:
    text = page(home, range(3), PATIENTS)
    assert "Seeds complete: 2 of 3. Test films: 6; trained on 4 real films, and 8 synthetic ones" in text
    real, both = (roc_auc_score(TRUTH, scores) for scores in (REAL, BOTH))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[2][1].startswith(f"{real:.3f} [")
    assert rows[3][2].startswith(f"{both:.3f} [")
    assert rows[4][1:] == ["+0.000", f"{both - real:+.3f}", f"{(both - real) / 2:+.3f} |"]
    assert "PSNR 20.5 dB, n = 2" in text
    assert page(home, [2], PATIENTS) == "No seed is complete yet."


def test_priors_get_the_films_that_the_other_arm_was_trained_on(tmp_path: Path) -> None:
    films = tmp_path / "films.csv"
    films.write_text("image,patient,pneumonia\na/1.jpg,p1,1\na/2.jpg,p2,0\na/3.jpg,p3,1\n")
    (tmp_path / "runs/real-4").mkdir(parents=True)
    (tmp_path / "runs/real-4/samples.json").write_text('{"train": {"keys": ["1", "3"]}}')
    path = Experiment(tmp_path, films, films, 1).films_of(4)
    assert path.read_text().splitlines() == [
        "image,patient,pneumonia", f"{tmp_path}/a/1.jpg,p1,1", f"{tmp_path}/a/3.jpg,p3,1",
    ]  # fmt: skip
