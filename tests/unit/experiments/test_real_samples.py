"""experiments/real_samples.py on a small model, and what it finds where that is known."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from experiments import real_samples
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.data.shards import Shards
from medunifier_cli.run.record import Run
from tests.run import small_priors


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_priors.fit_small_priors(tmp_path_factory.mktemp("real"))


@pytest.fixture
def trained(root: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainedRun:
    monkeypatch.setenv("MU_DATA", str(root / "data"))
    monkeypatch.setenv("MU_RUNS", str(root / "runs"))
    return restore(Run(root / "runs" / "model"), torch.device("cpu"))


def test_the_nearest_of_training_images_are_they_themselves(root: Path, trained: PretrainedRun) -> None:
    shards = Shards.open(root / "data" / "shards" / "phantom", "train")
    grey_nSS = np.stack([np.array(Image.open(BytesIO(shards.image(number)))) for number in (3, 41)])
    found = real_samples.nearest_training(trained, grey_nSS)
    for grey_SS, (other_SS, alike) in zip(grey_nSS, found, strict=True):
        assert (other_SS == grey_SS).all()
        assert alike == pytest.approx(1)


def test_every_row_is_measured_once_and_the_sheet_shows_each_sample_beside_a_film(
    root: Path, trained: PretrainedRun, tmp_path: Path
) -> None:
    words = ["--priors", "priors", "--other", "second", "--guidance", "2", "--images", "12"]
    words += ["--home", str(tmp_path)]
    done = CliRunner().invoke(real_samples.main, words, catch_exceptions=False)
    lines = [line for line in done.output.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        "real", "real, captions of other images", "reconstructed", "reconstructed, captions of other images",
        "drawn for captions, guidance 2", "drawn for prompts, guidance 2",
        "drawn for captions, guidance 2, best of 4", "drawn for prompts, guidance 2, best of 4",
    ]  # fmt: skip
    assert len(list(tmp_path.glob("*.json"))) == 5
    for path in tmp_path.glob("*.json"):
        kept = json.loads(path.read_text())
        rows = list(kept.values()) if "real" in kept else [kept]
        assert all({"match, own", "match, second's", "Fréchet", "recall"} <= row.keys() for row in rows)
        seven = {"Fréchet": [7.0]}
        path.write_text(json.dumps(dict.fromkeys(kept, seven) if "real" in kept else seven))
    again = CliRunner().invoke(real_samples.main, words, catch_exceptions=False)
    assert again.output.count("7.00") == 8
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * real_samples.SHOWN * 32
