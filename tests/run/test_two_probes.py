"""Two probes of one run at once, with no cache yet, as a job array over fractions starts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.finetune_runs import QUICK, FinetuneRuns


@pytest.mark.slow
def test_both_succeed_eight_times(tmp_path: Path) -> None:
    runs = FinetuneRuns(tmp_path)
    changes = (*QUICK, "train.steps=4", "model.freeze=true", f"data.shards={runs.shards}")
    first: dict[str, list[object]] = {}
    for number in range(8):
        shutil.rmtree(runs.pretrained / "cache", ignore_errors=True)
        names = [f"probe-{number}-{fraction}" for fraction in ("0.5", "1")]
        processes = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "medunifier_cli", "finetune", "finetune-demo", "--name", name,
                    "--run", str(runs.pretrained),
                    *(word for change in changes for word in ("-o", change)),
                    "-o", f"data.fraction={name.rpartition('-')[2]}",
                ],
                env={**os.environ, "MU_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for name in names
        ]  # fmt: skip
        for name, process in zip(names, processes, strict=True):
            printed, _ = process.communicate(timeout=600)
            assert process.returncode == 0, printed
            (result,) = (tmp_path / "runs" / name / "results").glob("finetune-*-test.json")
            metrics = json.loads(result.read_text())["metrics"]
            assert first.setdefault(name.rpartition("-")[2], metrics) == metrics
        # one cache for each split that both use, and one for the half of the training images
        left = sorted(path.name for path in (runs.pretrained / "cache").iterdir())
        assert len(left) == 4
        assert all(name.startswith("queries-") and name.endswith(".h5") for name in left)
