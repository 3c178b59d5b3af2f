"""experiments/figure.py: which films it shows, where, and what is generated."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import medunifier
from experiments.figure import EDGE, GAP, LETTER, TEXT, main

LEVELS = {"a": 40, "b": 80, "c": 120}


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), level).save(file, "png")
    return file.getvalue()


class Priors:
    """Stands for a trained model; generates films of one grey level."""

    def generate(self, prompts: list[str], *, guidance: float) -> list[Image.Image]:
        assert prompts == ["hyp a", "hyp b"]
        return [Image.new("L", (8, 8), 200)] * len(prompts)


def test_a_row_has_film_report_similar_film_and_generated_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medunifier, "load", lambda run: Priors())
    results, cache = tmp_path / "runs/demo/results", tmp_path / "runs/demo/cache"
    shard = tmp_path / "data/shards/phantom/test-000000.tar"
    for folder in (results, cache, shard.parent):
        folder.mkdir(parents=True)
    rows = [json.dumps({"key": key, "reference": "-", "hypothesis": f"hyp {key}"}) for key in LEVELS]
    (results / "reports-phantom-test.jsonl").write_text("\n".join(rows))
    with h5py.File(cache / "embeddings-phantom-test.h5", "w") as file:
        # c is most like a, and a is most like b; no film is its own neighbour
        file["image"] = np.array([[[1.0, 0.0]], [[0.6, -0.8]], [[0.9, 0.43]]], np.float32)
    with tarfile.open(shard, "w") as archive:
        for key, level in LEVELS.items():
            info = tarfile.TarInfo(f"{key}.png")
            info.size = len(png(level))
            archive.addfile(info, io.BytesIO(png(level)))

    out = tmp_path / "out.png"
    line = ["--demo", str(tmp_path), "--out", str(out), "--cases", "2"]
    done = CliRunner().invoke(main, line, catch_exceptions=False)
    assert done.exit_code == 0
    picture = np.asarray(Image.open(out))
    assert picture.shape == (2 * LETTER + 2 * EDGE + GAP, 3 * EDGE + TEXT + 3 * GAP)
    middle = [EDGE // 2 + left for left in (0, EDGE + TEXT + 2 * GAP, 2 * EDGE + TEXT + 3 * GAP)]
    for row, expected in enumerate(([40, 120, 200], [80, 40, 200])):
        y = 2 * LETTER + row * (EDGE + GAP) + EDGE // 2
        assert picture[y, middle].tolist() == expected
        report = picture[y - EDGE // 2 : y, EDGE + GAP : EDGE + GAP + TEXT]
        assert report.min() < 100, "the report is written there"
