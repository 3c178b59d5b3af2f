"""Fine-tuning in bf16: the scores that are reported are those of the saved weights, wherever computed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from click.testing import CliRunner

from medunifier_cli.cli import mu
from tests import warm
from tests.run.finetune_runs import QUICK, FinetuneRuns

FRESH = """
import io, json, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from medunifier_cli.checkpoint.classifier import restore_classifier
from medunifier_cli.cli import mu
from medunifier_cli.data.shards import Shards
from medunifier_cli.run.record import Run
from medunifier_cli.scores.classification import probabilities
torch.set_num_threads(1)
_, network, classes = restore_classifier(Run(Path(sys.argv[1])))
shards = Shards.open(Path(sys.argv[2]), "test")
images = np.zeros((64, 1, 32, 32), np.uint8)  # a batch of the stage's size: another one may round otherwise
for i in range(len(shards)):
    images[i, 0] = np.asarray(Image.open(io.BytesIO(shards.image(i))))
with torch.no_grad():
    logits = network(torch.from_numpy(images))[: len(shards)].numpy()
with open(sys.argv[3], "w") as file:
    for i, scores in enumerate(probabilities(logits, False).tolist()):
        row = {"key": shards.key(i), "scores": dict(zip(classes, scores))}
        file.write(json.dumps(row, sort_keys=True) + "\\n")
mu(sys.argv[4:], standalone_mode=False)
"""
"""Restores `best/` of a run, writes the scores of each test sample, and gives a command of `mu`."""


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own() -> Iterator[None]:
    """Accelerate keeps the first precision of a process; these tests train in two."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("no", marks=pytest.mark.slow)])
def test_scores_of_the_training_process_are_those_of_a_fresh_one(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, run = FinetuneRuns(tmp_path), tmp_path / "runs" / "tuned"
    monkeypatch.setenv("MU_RUNS", str(run.parent))
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = (
        *QUICK, f"data.shards={runs.shards}", f"model.pretrained={runs.pretrained}",
        f"train.precision={precision}",
    )  # fmt: skip
    line = ["finetune", "finetune-demo", "--name", run.name]
    line += [word for setting in settings for word in ("-o", setting)]
    trained = CliRunner().invoke(mu, line, catch_exceptions=False)
    assert trained.exit_code == 0, trained.output
    samples = run / "results" / "finetune-phantom-test.samples.jsonl"
    saved = samples.read_text()
    rows = [json.loads(text) for text in saved.splitlines()]
    kept = [json.dumps({name: row[name] for name in ("key", "scores")}, sort_keys=True) for row in rows]
    result = run / "results" / "finetune-phantom-test.json"
    before = result.read_bytes()
    assert "forward passes in fp32" in json.loads(before)["protocol"]
    result.unlink()
    samples.unlink()

    # another process, which then gets the same command again and now measures without training
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    scores = tmp_path / "scores.jsonl"
    done = warm.run(["-c", FRESH, run, runs.shards, scores, *line], env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert kept == scores.read_text().splitlines()
    assert samples.read_text() == saved
    assert result.read_bytes() == before
